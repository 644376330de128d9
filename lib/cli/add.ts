import { LoopControl } from "../kernel/loop_control.ts";
import { optionalNumber, parse } from "./arguments.ts";
import type { Command } from "./command.ts";
import { print } from "./output.ts";

export const command: Command = {
  title: "Add a loop device.",
  examples: `loopdev add        the lowest number that does not exist
loopdev add 100    /dev/loop100`,
  options: {},
  notes:
    "Prints the path of the device. Permissions: deno run --allow-ffi, and root.",
  run,
};

function run(args: string[]): number {
  const minor = optionalNumber(parse(args).operands);
  using control = new LoopControl();
  print(`/dev/loop${control.add(minor)}`);
  return 0;
}
