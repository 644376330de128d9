/** Writes the help. */
import { none, parse } from "./arguments.ts";
import type { Command, Commands, Option, Options } from "./command.ts";
import { findCommand, type NamedEntry } from "./find_command.ts";
import { print } from "./output.ts";
import { wrapWords } from "./text.ts";

export const command: Command = {
  title: "Explain a command, or list all commands.",
  examples: `loopdev help
loopdev help attach`,
  options: {},
  notes: "loopdev COMMAND --help prints the same. Permissions: none.",
  run,
};

async function run(args: string[], commands: Commands): Promise<number> {
  const [name, ...more] = parse(args).operands;
  none(more);
  if (name === undefined) print(help(commands));
  else if (name === "losetup") print(await losetupHelp());
  else {
    const found = findCommand(name, commands);
    print(helpOf(found, (await found.entry.load()).command));
  }
  return 0;
}

async function losetupHelp(): Promise<string> {
  const { help } = await import("../losetup/help.ts");
  return help().trimEnd();
}

/** Returns the text of `loopdev --help`. */
export function help(commands: Commands): string {
  return `Control Linux loop devices: files that act as block devices.

Examples:
  loopdev attach disk.img            attach a file; prints /dev/loop0
  loopdev attach -r -P disk.img      read-only, with its partitions
  loopdev list                       list attached devices
  loopdev find disk.img              find the devices of a file
  loopdev show /dev/loop0            show everything about a device, and its users
  loopdev detach /dev/loop0          detach, and wait until it is free

Usage: loopdev COMMAND [options]

Commands:
${commandLines(commands)}
  losetup ...        do what losetup of util-linux does

  loopdev help COMMAND explains a command and its options.

DEV is /dev/loop3, loop3, 3 or any path to the node of a loop device.
Sizes are bytes, or 4K, 4KiB (1024), 4KB (1000), 1.5M ...

Exit status: 0 done, 1 failed, 2 wrong usage.
Permissions: deno run --allow-ffi, and usually root.`;
}

function commandLines(commands: Commands): string {
  const width = 19;
  return Object.entries(commands).map(([name, entry]) => {
    const { operands, alias, summary } = entry;
    const usage = `${name}${alias ? `, ${alias}` : ""} ${operands}`.trim();
    const gap = usage.length < width
      ? " ".repeat(width - usage.length)
      : `\n${" ".repeat(width + 2)}`;
    return `  ${usage}${gap}${summary}`;
  }).join("\n");
}

/** Returns the text of `loopdev <command> --help`, examples first. */
export function helpOf(
  { name, entry: { operands, alias } }: NamedEntry,
  { title, examples, options, notes }: Command,
): string {
  const lines = optionLines(options);
  const usage = lines.length === 0
    ? operands
    : operands.replace(/( \[-- .*)?$/, " [options]$1");
  return [
    title,
    `Examples:\n${examples.replace(/^/gm, "  ")}`,
    `Usage: loopdev ${name} ${usage.trim()}`.trim() +
    (alias === undefined ? "" : `\nAlias: loopdev ${alias}`),
    ...lines.length === 0 ? [] : [`Options:\n${lines.join("\n")}`],
    notes.split("\n\n").map((paragraph) =>
      wrapWords(paragraph.replaceAll("\n", " "), COLUMNS).join("\n")
    ).join("\n\n"),
  ].join("\n\n");
}

/** Width of the narrowest common terminal, less one. */
const COLUMNS = 79;

/** Formats an option: `-o, --offset SIZE`. */
function spelling(name: string, { letter, value, negatable }: Option): string {
  const short = letter === undefined ? "    " : `-${letter}, `;
  const long = `--${negatable ? "[no-]" : ""}${name}`;
  return `${short}${long}${value === undefined ? "" : ` ${value}`}`;
}

function optionLines(options: Options): string[] {
  const rows = Object.entries(options)
    .map(([name, option]) => [spelling(name, option), option.help] as const);
  const width = Math.max(0, ...rows.map(([spelled]) => spelled.length)) + 3;
  const margin = `\n${" ".repeat(width + 2)}`;
  return rows.map(([spelled, help]) => {
    const lines = wrapWords(help, COLUMNS - width - 2);
    return `  ${spelled.padEnd(width)}${lines.join(margin)}`;
  });
}
