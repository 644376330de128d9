/** Finds the command, and turns errors into one line and an exit status. */
import "../sys/open_on_use.ts";
import project from "../../deno.json" with { type: "json" };
import { COMMANDS } from "./commands.ts";
import type { NamedEntry } from "./find_command.ts";
import { fail, hasLostMessage, print } from "./output.ts";
import { UsageError } from "./usage_error.ts";

/** Runs the command line and returns the exit status. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args) || Number(hasLostMessage());
  } catch (error) {
    if (error instanceof UsageError) return usage(error.message, args[0]);
    const { report } = await import("./report.ts");
    return report(error);
  }
}

async function dispatch(args: readonly string[]): Promise<number> {
  const [word = "help", ...rest] = args;
  if (word === "losetup") return await losetup(rest);
  if (asksFor(args, ["--version", "-V"])) {
    print(`loopdev ${project.version}`);
    return 0;
  }
  const isHelp = word === "--help" || word === "-h";
  const found = await find(isHelp ? "help" : word);
  const { command } = await found.entry.load();
  if (asksFor(rest, ["--help", "-h"])) {
    const { helpOf } = await import("./help.ts");
    print(helpOf(found, command));
    return 0;
  }
  return await command.run(rest, COMMANDS);
}

async function find(word: string): Promise<NamedEntry> {
  const entry = Object.hasOwn(COMMANDS, word) ? COMMANDS[word] : undefined;
  if (entry !== undefined) return { name: word, entry };
  const { findCommand } = await import("./find_command.ts");
  return findCommand(word, COMMANDS);
}

/** Passes everything after `losetup` to the drop-in, which parses its own options. */
async function losetup(args: string[]): Promise<number> {
  const program = await import("../losetup/program.ts");
  return await program.main(args);
}

function asksFor(args: readonly string[], options: string[]): boolean {
  const end = args.indexOf("--");
  return (end < 0 ? args : args.slice(0, end))
    .some((arg) => options.includes(arg));
}

function usage(message: string, word = ""): number {
  const isCommand = word !== "help" && Object.hasOwn(COMMANDS, word);
  const help = isCommand ? `help ${word}` : "help";
  fail(`${message} (see loopdev ${help})`);
  return 2;
}
