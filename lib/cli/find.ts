import { find } from "../devices.ts";
import { only, parse } from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { printLines } from "./output.ts";

export const command: Command = {
  title: "Print the devices that a file is attached to.",
  examples: `loopdev find disk.img
loopdev find disk.img > /dev/null && echo attached`,
  options: {},
  notes:
    `The file is recognized by device and inode, so also through hard links, symbolic links
and bind mounts. Prints one path per line; the exit status is 1 if there is none.
Permissions: deno run --allow-ffi.`,
  run,
};

function run(args: string[]): number {
  const devices = find(fileOf(only(parse(args).operands, "FILE")));
  printLines(devices.map(({ path }) => path));
  return devices.length === 0 ? 1 : 0;
}
