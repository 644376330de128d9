import { checkBlockSize } from "../arguments.ts";
import {
  asUsage,
  only,
  openDevice,
  optionalSize,
  parse,
  parseSize,
  UsageError,
} from "./arguments.ts";
import type { Command } from "./main.ts";

const HELP = `Change a live loop device.

Examples:
  loopdev set /dev/loop0 --offset 1M --sizelimit 0
  loopdev set /dev/loop0 --no-autoclear
  loopdev set /dev/loop0 -b 4096 --direct-io

Usage: loopdev set DEV [options]

Options:
      --offset SIZE        begin there in the file
      --sizelimit SIZE     at most so large; 0 takes the limit away
  -b, --sector-size SIZE   logical block size
      --[no-]autoclear     whether the kernel detaches at the last close
      --partscan           have the kernel look for partitions
      --[no-]direct-io     bypass the page cache of the file

Offset, limit and block size of a device that is mounted or otherwise held exclusively
are refused. Permissions: deno run --allow-ffi, and mostly root.`;

export const command: Command = { help: HELP, run };

function run(args: string[]): number {
  const given = parse(args, {
    values: { offset: "o", sizelimit: "", "sector-size": "b" },
    flags: { partscan: "P" },
    switches: ["autoclear", "direct-io"],
  });
  const device = only(given.operands, "DEV");
  const sectorSize = given.value("sector-size");
  const blockSize = sectorSize === undefined
    ? undefined
    : asUsage(() =>
      checkBlockSize(Number(parseSize(sectorSize, "sector size")))
    );
  const directIo = given.switched("direct-io");
  const changes = {
    offset: optionalSize(given, "offset"),
    sizelimit: optionalSize(given, "sizelimit"),
    autoclear: given.switched("autoclear"),
    partscan: given.flag("partscan") || undefined,
  };
  const all = [...Object.values(changes), blockSize, directIo];
  if (all.every((value) => value === undefined)) {
    throw new UsageError("nothing is to be changed");
  }

  using loop = openDevice(device, {});
  // Direct I/O constrains the offset, and the block size constrains direct I/O.
  if (directIo === false) loop.setDirectIo(false);
  loop.setStatus(changes);
  if (blockSize !== undefined) loop.setBlockSize(blockSize);
  if (directIo === true) loop.setDirectIo(true);
  return 0;
}
