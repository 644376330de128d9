import { refuseNewOverlap } from "../attaching/overlap.ts";
import { hasSysfs } from "../kernel/loop_sysfs.ts";
import { partitions } from "../partitions/partitions.ts";
import {
  only,
  openDevice,
  optionalBlockSize,
  optionalSize,
  parse,
  UsageError,
} from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { follow, showsPartitions } from "./follow.ts";
import { warnOfRestOfAttached } from "./warnings.ts";

const OPTIONS: Options = {
  offset: {
    letter: "o",
    value: "SIZE",
    help: "start at this offset in the file",
  },
  sizelimit: {
    value: "SIZE",
    help: "limit the size of the device; 0 removes the limit",
  },
  "sector-size": {
    letter: "b",
    value: "SIZE",
    help: "logical block size",
    choices: ["512", "1024", "2048", "4096"],
  },
  autoclear: {
    negatable: true,
    help: "have the kernel detach at the last close",
  },
  partscan: { letter: "P", help: "make the partitions appear" },
  "direct-io": {
    negatable: true,
    help: "bypass the page cache of the file",
  },
};

export const command: Command = {
  title: "Change a live loop device.",
  examples: `loopdev set /dev/loop0 --offset 1M --sizelimit 0
loopdev set /dev/loop0 --no-autoclear
loopdev set /dev/loop0 -b 4096 --direct-io`,
  options: OPTIONS,
  notes:
    `Refuses to change offset, limit and block size of a device that is mounted or held
exclusively by another program, and to show bytes of the file that another device shows.
Partitions that were shown become those at the new offset. Bytes that are added are not
locked. --autoclear detaches a device at once if no other program
has it open, because this command is the last to close it. Permissions: deno run
--allow-ffi, and usually root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const device = only(given.operands, "DEV");
  const blockSize = optionalBlockSize(given);
  const directIo = given.switched("direct-io");
  const changes = {
    offset: optionalSize(given, "offset"),
    sizelimit: optionalSize(given, "sizelimit"),
    autoclear: given.switched("autoclear"),
    partscan: given.flag("partscan") || undefined,
  };
  const all = [...Object.values(changes), blockSize, directIo];
  if (all.every((value) => value === undefined)) {
    throw new UsageError("no changes given");
  }

  using loop = openDevice(device, {});
  const isMoved = changes.offset !== undefined ||
    changes.sizelimit !== undefined;
  // Without sysfs, other devices cannot be found.
  if (isMoved && hasSysfs()) refuseNewOverlap(loop, changes);
  // Direct I/O constrains the offset, and the block size constrains direct I/O.
  const shows = showsPartitions(loop);
  if (directIo === false) loop.setDirectIo(false);
  loop.setStatus(changes);
  await using following = new AsyncDisposableStack();
  const mustFollow = shows && !changes.partscan;
  // Also if the rest fails: a new offset has removed the partitions.
  if (isMoved && mustFollow) following.defer(() => follow(loop));
  if (blockSize !== undefined) loop.setBlockSize(blockSize);
  if (directIo === true) loop.setDirectIo(true);
  const isResized = [changes.offset, changes.sizelimit, blockSize].some((
    value,
  ) => value !== undefined);
  if (isResized) warnOfRestOfAttached(loop);
  if (changes.partscan) await partitions(loop.minor);
  else if (!isMoved && mustFollow && blockSize !== undefined) {
    await follow(loop);
  }
  return 0;
}
