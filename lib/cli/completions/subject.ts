/** What there is to complete, for every shell. */
import type { Options } from "../command.ts";

/** What is completed behind a command. */
export interface Subject {
  readonly name: string;
  readonly summary: string;
  /** `DEV`, `FILE` …, in their order; the last one may be repeated. */
  readonly operands: readonly string[];
  readonly options: Options;
}

/** The shells. */
export const SHELLS = ["bash", "zsh", "fish"];

/** The commands that take any device; others take one to which a file is attached. */
const ANY_DEVICE = ["attach", "run", "mknod"];

/** What a value or an operand is completed with. */
export type Source =
  | "attached devices"
  | "attached devices and files"
  | "all devices"
  | "files"
  | "directories"
  | "commands"
  | { readonly choices: readonly string[]; readonly isList: boolean }
  | undefined;

/** What a word of the help stands for. */
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
      return "attached devices and files";
    case "FILE":
    case "FILE|DEV":
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

/** Text as a word of a shell. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
