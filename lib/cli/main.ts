/** Finds the command, and turns what goes wrong into one line and an exit status. */
import project from "../../deno.json" with { type: "json" };
import { LoopError, quote } from "../errors.ts";
import { helpOf } from "./command.ts";
import { COMMANDS, entryOf } from "./commands.ts";
import { UsageError } from "./usage_error.ts";
import { fail, print } from "./output.ts";

const help = (): string =>
  `Control Linux loop devices: files that act as block devices.

Examples:
  loopdev attach disk.img            attach a file; prints /dev/loop0
  loopdev attach -r -P disk.img      read-only, with its partitions
  loopdev list                       what is attached
  loopdev find disk.img              where a file is attached
  loopdev show /dev/loop0            everything about a device, and who uses it
  loopdev detach /dev/loop0          detach, and wait until it is free

Usage: loopdev <command> [options]

Commands:
${commandLines()}
  losetup ...        what losetup of util-linux does

  loopdev <command> --help tells more.

DEV is /dev/loop3, loop3, 3 or any path to the node of a loop device.
Sizes are bytes, or 4K, 4KiB (1024), 4KB (1000), 1.5M ...

Exit status: 0 done, 1 failed, 2 wrong usage.
Permissions: deno run --allow-ffi, and mostly root.`;

/** Runs the command line and gives the exit status. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args);
  } catch (error) {
    if (error instanceof UsageError) return usage(error.message, args[0]);
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
    print(help());
    return 0;
  }
  if (name === undefined) return usage("which command?");
  const entry = entryOf(name);
  if (entry === undefined) return usage(`there is no command ${quote(name)}`);

  const { command } = await entry.load();
  if (asksFor(rest, ["--help", "-h"])) {
    print(helpOf(name, entry.operands, command));
    return 0;
  }
  return await command.run(rest);
}

function commandLines(): string {
  const width = 19;
  return Object.entries(COMMANDS).map(([name, { operands, summary }]) => {
    const usage = `${name} ${operands}`.trim();
    const gap = usage.length < width
      ? " ".repeat(width - usage.length)
      : `\n${" ".repeat(width + 2)}`;
    return `  ${usage}${gap}${summary}`;
  }).join("\n");
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

/** One line for what is expected to go wrong. What is not keeps its stack. */
export function report(error: unknown): number {
  const isExpected = error instanceof LoopError ||
    error instanceof RangeError || // a size that no number holds
    error instanceof Deno.errors.NotCapable ||
    error instanceof Deno.errors.NotSupported;
  if (isExpected) fail(error.message);
  else fail(error instanceof Error ? error.stack ?? error.message : `${error}`);
  return 1;
}
