import { only, openDevice, parse } from "./arguments.ts";
import type { Command } from "./main.ts";
import { print } from "./output.ts";

const HELP = `Take over the present size of the file of a loop device.

Examples:
  truncate -s 2G disk.img && loopdev resize /dev/loop0

Usage: loopdev resize DEV

Prints the new size of the device in bytes.
Permissions: deno run --allow-ffi, and mostly root.`;

export const command: Command = { help: HELP, run };

function run(args: string[]): number {
  using loop = openDevice(only(parse(args).operands, "DEV"), {});
  loop.setCapacity();
  print(`${loop.getSize()}`);
  return 0;
}
