/** Finds the command, and turns what goes wrong into one line and an exit status. */
import project from "../../deno.json" with { type: "json" };
import { quote } from "../errors.ts";
import { COMMANDS, entryOf } from "./commands.ts";
import { UsageError } from "./usage_error.ts";
import { fail, print } from "./output.ts";

/** Runs the command line and gives the exit status. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args);
  } catch (error) {
    if (error instanceof UsageError) return usage(error.message, args[0]);
    const { report } = await import("./report.ts");
    return report(error);
  }
}

async function dispatch(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "losetup") return await losetup(rest);
  if (asksFor(args, ["--version", "-V"])) {
    print(`loopdev ${project.version}`);
    return 0;
  }
  if (name === "--help" || name === "-h") {
    const { help } = await import("./help.ts");
    print(help());
    return 0;
  }
  if (name === undefined) return usage("which command?");
  const entry = entryOf(name);
  if (entry === undefined) {
    return usage(`there is no command ${quote(name)}`);
  }

  const { command } = await entry.load();
  if (asksFor(rest, ["--help", "-h"])) {
    const { helpOf } = await import("./help.ts");
    print(helpOf(name, entry.operands, command));
    return 0;
  }
  return await command.run(rest, COMMANDS);
}

/** All that stands behind `losetup` is for losetup, which has an own way with options and errors. */
async function losetup(args: string[]): Promise<number> {
  const program = await import("../losetup/program.ts");
  return await program.main(args);
}

function asksFor(args: readonly string[], options: string[]): boolean {
  const end = args.indexOf("--");
  return (end < 0 ? args : args.slice(0, end))
    .some((arg) => options.includes(arg));
}

function usage(message: string, command?: string): number {
  const help = `loopdev ${command === undefined ? "" : `${command} `}--help`;
  fail(`${message} (see ${help})`);
  return 2;
}
