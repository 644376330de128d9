import { only, openDevice, parse } from "./arguments.ts";
import { exactSize } from "../kernel/loop.ts";
import type { Command } from "./command.ts";
import { follow, showsPartitions } from "./follow.ts";
import { print } from "./output.ts";
import { warnOfRestOfAttached } from "./warnings.ts";

export const command: Command = {
  title: "Resize a loop device to the current size of its file.",
  examples: "truncate -s 2G disk.img && loopdev resize /dev/loop0",
  options: {},
  notes:
    `Prints the new size of the device in bytes. Partitions that are larger in the table
now also grow, even if they are mounted.
Permissions: deno run --allow-ffi, and usually root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  using loop = openDevice(only(parse(args).operands, "DEV"), {});
  loop.setCapacity();
  warnOfRestOfAttached(loop);
  if (showsPartitions(loop)) await follow(loop);
  print(`${exactSize(loop)}`);
  return 0;
}
