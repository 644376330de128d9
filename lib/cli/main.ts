/** Finds the command, and turns what goes wrong into one line and an exit status. */
import project from "../../deno.json" with { type: "json" };
import { LoopError } from "../errors.ts";
import { UsageError } from "./arguments.ts";
import { fail, print } from "./output.ts";

/** A command. */
export interface Command {
  /** What `loopdev <command> --help` prints: examples first. */
  readonly help: string;
  /** Does it. The result is the exit status. */
  run(args: string[]): number | Promise<number>;
}

// Each is loaded when it is needed. The specifiers must be literal: a computed one
// needs --allow-read, and is lost to deno compile.
const COMMANDS: Record<string, () => Promise<{ command: Command }>> = {
  attach: () => import("./attach.ts"),
  run: () => import("./run.ts"),
  detach: () => import("./detach.ts"),
  list: () => import("./list.ts"),
  find: () => import("./find.ts"),
  show: () => import("./show.ts"),
  set: () => import("./set.ts"),
  swap: () => import("./swap.ts"),
  resize: () => import("./resize.ts"),
  partitions: () => import("./partitions.ts"),
  add: () => import("./add.ts"),
  remove: () => import("./remove.ts"),
  mknod: () => import("./mknod.ts"),
};

const HELP = `Control Linux loop devices: files that act as block devices.

Examples:
  loopdev attach disk.img            attach a file; prints /dev/loop0
  loopdev attach -r -P disk.img      read-only, with its partitions
  loopdev list                       what is attached
  loopdev find disk.img              where a file is attached
  loopdev show /dev/loop0            everything about a device, and who uses it
  loopdev detach /dev/loop0          detach, and wait until it is free

Usage: loopdev <command> [options]

Commands:
  attach FILE...     attach files to devices that outlive the command
  run FILE... -- COMMAND...
                     attach files, run a command, detach them
  detach DEV...      detach devices and wait until they are free
  list               attached devices
  find FILE          devices of a file; exit status 1 when there is none
  show DEV           everything about one device
  set DEV            change a live device
  swap DEV FILE      exchange the file of a read-only device
  resize DEV         take over the present size of the file
  partitions DEV     make partitions appear; list them
  add [N]            add a device
  remove [N]         remove a device that nobody uses
  mknod DEV DIR      make a node of a device in a directory
  losetup ...        what losetup of util-linux does

  loopdev <command> --help tells more.

DEV is /dev/loop3, loop3, 3 or any path to the node of a loop device.
Sizes are bytes, or 4K, 4KiB (1024), 4KB (1000), 1.5M ...

Exit status: 0 done, 1 failed, 2 wrong usage.
Permissions: deno run --allow-ffi, and mostly root.`;

/** Runs the command line and gives the exit status. */
export async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "losetup") return await losetup(rest);
  if (asksFor(args, ["--version", "-V"])) {
    print(`loopdev ${project.version}`);
    return 0;
  }
  if (name === "--help" || name === "-h") {
    print(HELP);
    return 0;
  }
  if (name === undefined) return usage("which command?");
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (load === undefined) return usage(`there is no command "${name}"`);

  const { command } = await load();
  if (asksFor(rest, ["--help", "-h"])) {
    print(command.help);
    return 0;
  }
  try {
    return await command.run(rest);
  } catch (error) {
    if (error instanceof UsageError) return usage(error.message, name);
    return report(error);
  }
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
