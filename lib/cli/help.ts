/** The help. */
import type { Command, Option, Options } from "./command.ts";
import { COMMANDS } from "./commands.ts";
import { wrapWords } from "./text.ts";

/** What `loopdev --help` prints. */
export function help(): string {
  return `Control Linux loop devices: files that act as block devices.

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

/** What `loopdev <command> --help` prints: examples first. */
export function helpOf(
  name: string,
  operands: string,
  { title, examples, options, notes }: Command,
): string {
  const lines = optionLines(options);
  const usage = lines.length === 0
    ? operands
    : operands.replace(/( -- .*)?$/, " [options]$1");
  return [
    title,
    `Examples:\n${examples.replace(/^/gm, "  ")}`,
    `Usage: loopdev ${name} ${usage.trim()}`.trim(),
    ...lines.length === 0 ? [] : [`Options:\n${lines.join("\n")}`],
    notes.split("\n\n").map((paragraph) =>
      wrapWords(paragraph.replaceAll("\n", " "), COLUMNS).join("\n")
    ).join("\n\n"),
  ].join("\n\n");
}

/** What every terminal has. */
const COLUMNS = 79;

/** An option as people write it: `-o, --offset SIZE`. */
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
