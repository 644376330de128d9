import { LoopControl } from "../loop_control.ts";
import { only, parse, parseNumber } from "./arguments.ts";
import type { Command } from "./main.ts";
import { print } from "./output.ts";

const HELP =
  `Remove a loop device to which no file is attached and which nobody has open.

Examples:
  loopdev remove 100    /dev/loop100
  loopdev remove        the lowest that can be removed

Usage: loopdev remove [N]

Prints the path that the device had. Permissions: deno run --allow-ffi, and root.`;

export const command: Command = { help: HELP, run };

function run(args: string[]): number {
  const { operands } = parse(args);
  const minor = operands.length === 0
    ? undefined
    : parseNumber(only(operands, "N"));
  using control = new LoopControl();
  print(`/dev/loop${control.remove(minor)}`);
  return 0;
}
