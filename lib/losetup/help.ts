/** Text of `--help`. */
import { COLUMNS } from "./columns.ts";

/** Returns the help text, with the options grouped by purpose. */
export function help(): string {
  return `losetup: attach files to loop devices, list and detach devices

  losetup [-l] [DEV]                        list all devices or one
  losetup [options] -f [FILE]               find the first free device, or attach to it
  losetup [options] DEV FILE                attach to DEV
  losetup -d DEV...                         detach
  losetup [-b SIZE] [--direct-io[=off]] DEV change a device
  losetup -j FILE [-o SIZE]                 list the devices of a file
  losetup -c DEV                            resize to the size of the file
  losetup -D                                detach all devices
  losetup --remove DEV...                   remove free devices

Attaching:
  -f, --find                 attach to the first device that is free
      --show                 print the name of the device
  -o, --offset SIZE          start at this offset in the file
      --sizelimit SIZE       limit the size of the device
  -b, --sector-size SIZE     logical sector size
  -r, --read-only            make the device read-only
  -P, --partscan             scan for partitions
  -L, --nooverlap            do not attach the same bytes twice
      --direct-io[=on|off]   bypass the page cache of the file
      --loop-ref TEXT        store a text with the device

Listing:
  -a, --all                  list all devices
  -j, --associated FILE      list those of a file
  -l, --list                 list as a table
  -O, --output LIST          print these columns; +LIST adds to the default
      --output-all           print all columns
  -n, --noheadings           omit the headings
  -J, --json   --raw         output for programs

  -d, --detach   -D, --detach-all   -c, --set-capacity   --remove   -v
  -h, --help   -V, --version

Columns:
${COLUMNS.map(({ name, help }) => `  ${name.padEnd(13)} ${help}\n`).join("")}
Sizes are bytes, or 4K, 4KiB (1024), 4KB (1000), 0x1000.
`;
}
