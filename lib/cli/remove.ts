import { LoopControl } from "../kernel/loop_control.ts";
import { optionalNumber, parse } from "./arguments.ts";
import type { Command } from "./command.ts";
import { print } from "./output.ts";

export const command: Command = {
  title:
    "Remove a loop device that has no file attached and that no process has open.",
  examples: `loopdev remove 100    /dev/loop100
loopdev remove        the lowest number that can be removed`,
  options: {},
  notes:
    "Prints the path that the device had. Permissions: deno run --allow-ffi, and root.",
  run,
};

function run(args: string[]): number {
  const minor = optionalNumber(parse(args).operands);
  using control = new LoopControl();
  print(`/dev/loop${control.remove(minor)}`);
  return 0;
}
