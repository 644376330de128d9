/** Finds a command by a word of the command line. */
import { printable, quote } from "../errors.ts";
import type { Commands, Entry } from "./command.ts";
import { suggest } from "./spelling.ts";
import { UsageError } from "./usage_error.ts";

/** A command and its name in the help. */
export interface NamedEntry {
  readonly name: string;
  readonly entry: Entry;
}

/**
 * Finds a command by its name or alias.
 *
 * @throws {UsageError} If there is no such command; the error suggests the nearest one.
 */
export function findCommand(word: string, commands: Commands): NamedEntry {
  const found = Object.entries(commands)
    .find(([name, { alias }]) => word === name || word === alias);
  if (found !== undefined) return { name: found[0], entry: found[1] };
  if (word.startsWith("-")) {
    throw new UsageError(
      `unknown option ${
        printable(word)
      }: for the options of losetup, use loopdev losetup`,
    );
  }
  throw new UsageError(
    `unknown command ${quote(word)}${suggest(word, names(commands))}`,
  );
}

function names(commands: Commands): string[] {
  return [
    ...Object.entries(commands)
      .flatMap(([name, { alias }]) =>
        alias === undefined ? [name] : [name, alias]
      ),
    "losetup",
  ];
}
