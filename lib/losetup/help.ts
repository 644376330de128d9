/** Text of `--help`. */
import { COLUMNS } from "./columns.ts";

/** Returns the help text, with the options grouped by purpose. */
export function help(): string {
  return `losetup: attach files to loop devices, list and detach them

  losetup [-l] [DEV]                        list devices, or one of them
  losetup [options] -f [FILE]               the first free device, or attach there
  losetup [options] DEV FILE                attach
  losetup -d DEV...                         detach
  losetup [-b SIZE] [--direct-io[=off]] DEV change
  losetup -j FILE [-o SIZE]                 the devices of a file
  losetup -c DEV                            take over the size of the file
  losetup -D                                detach all devices
  losetup --remove DEV...                   remove free devices

Attaching:
  -f, --find                 to the first device that is free
      --show                 print its name
  -o, --offset SIZE          begin there in the file
      --sizelimit SIZE       show at most that much
  -b, --sector-size SIZE     logical sector size
  -r, --read-only            for reading only
  -P, --partscan             with partitions
  -L, --nooverlap            never twice over the same bytes
      --direct-io[=on|off]   around the page cache of the file
      --loop-ref TEXT        a text to keep with the device

Listing:
  -a, --all                  all devices
  -j, --associated FILE      those of a file
  -l, --list                 as a table
  -O, --output LIST          with these columns; +LIST: with these too
      --output-all           with all columns
  -n, --noheadings           without headings
  -J, --json   --raw         for programs

  -d, --detach   -D, --detach-all   -c, --set-capacity   --remove   -v
  -h, --help   -V, --version

Columns:
${COLUMNS.map(({ name, help }) => `  ${name.padEnd(13)} ${help}\n`).join("")}
Sizes are bytes, or 4K, 4KiB (1024), 4KB (1000), 0x1000.
`;
}
