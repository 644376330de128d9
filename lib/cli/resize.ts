import { only, openDevice, parse } from "./arguments.ts";
import { exactSize } from "../kernel/loop.ts";
import type { Command } from "./command.ts";
import { follow, showsPartitions } from "./follow.ts";
import { print } from "./output.ts";
import { warnOfRestOfAttached } from "./warnings.ts";

export const command: Command = {
  title: "Take over the present size of the file of a loop device.",
  examples: "truncate -s 2G disk.img && loopdev resize /dev/loop0",
  options: {},
  notes:
    `Prints the new size of the device in bytes. Partitions that the table now gives more
room grow too, mounted or not.
Permissions: deno run --allow-ffi, and mostly root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  using loop = openDevice(only(parse(args).operands, "DEV"), {});
  loop.setCapacity();
  warnOfRestOfAttached(loop);
  print(`${exactSize(loop)}`);
  if (showsPartitions(loop)) await follow(loop);
  return 0;
}
