/** Candidates for completion, for every shell. */
import type { Options } from "../command.ts";

/** A command to complete. */
export interface Subject {
  readonly name: string;
  readonly summary: string;
  /** Operands in order: `DEV`, `FILE` …. The last one may be repeated. */
  readonly operands: readonly string[];
  readonly options: Options;
}

/** Shells with a completion script. */
export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = typeof SHELLS[number];

/** Commands that take any device. Others take a device that has a file attached. */
const ANY_DEVICE = ["attach", "run", "mount", "mknod"];

/** Candidates for a value or an operand. */
export type Source =
  | "attached devices"
  | "attached devices and files"
  | "all devices"
  | "files"
  | "directories"
  | "commands"
  | { readonly choices: readonly string[]; readonly isList: boolean }
  | undefined;

/** Returns the candidates for a word of the help. */
export function sourceOf(
  command: string,
  word: string | undefined,
  choices?: readonly string[],
): Source {
  if (choices !== undefined) return { choices, isList: word === "LIST" };
  switch (word) {
    case "DEV":
      return ANY_DEVICE.includes(command) ? "all devices" : "attached devices";
    case "DEV|FILE":
    case "FILE|DEV":
      return "attached devices and files";
    case "FILE":
      return "files";
    case "DIR":
      return "directories";
    case "SHELL":
      return { choices: SHELLS, isList: false };
    case "COMMAND":
      return "commands";
    default:
      return undefined;
  }
}

/** Returns the options that take their value from the next word: `--offset`, `-o`. */
export function valuedOptions({ options }: Subject): string[] {
  return Object.entries(options)
    .filter(([, { value }]) => value !== undefined)
    .flatMap(([long, { letter }]) => [
      `--${long}`,
      ...letter ? [`-${letter}`] : [],
    ]);
}

/** Quotes text as one word of a shell. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
