/** Parses options like `getopt_long(3)` of glibc. */
import type { ByteString } from "./byte_string.ts";

/** An option with a long name. */
export interface LongOption {
  readonly name: string;
  /** Name of the option in the result: its letter, if it has one. */
  readonly key: string;
  readonly argument: "none" | "required" | "optional";
  /** `true` if an abbreviation matches this option only when it matches no other. */
  readonly isLate?: boolean;
}

/** The options of a program. */
export interface Grammar {
  /** The option letters, each followed by a colon if it takes an argument. */
  readonly letters: string;
  readonly long: readonly LongOption[];
  /** Returns `true` if an operand ends the options, as with `POSIXLY_CORRECT`. */
  stopsAtOperand(): boolean;
}

/** An option on the command line. */
export interface GivenOption {
  readonly key: string;
  readonly value: ByteString | undefined;
}

/** Error thrown for an invalid command line. */
export class GetoptError extends Error {
  override readonly name = "GetoptError";
}

/**
 * Yields the options in order, so that the first error counts. Operands are collected
 * separately.
 */
export function* getopt(
  args: readonly ByteString[],
  grammar: Grammar,
  operands: ByteString[],
): Generator<GivenOption> {
  const rest = [...args];
  for (let arg; (arg = rest.shift()) !== undefined;) {
    if (arg === "--") break;
    if (arg.startsWith("--")) {
      yield longOption(arg.slice(2), grammar.long, rest);
    } else if (arg.startsWith("-") && arg !== "-") {
      yield* shortOptions(arg.slice(1), grammar.letters, rest);
    } else {
      operands.push(arg);
      if (grammar.stopsAtOperand()) break;
    }
  }
  operands.push(...rest);
}

function* shortOptions(
  cluster: ByteString,
  letters: string,
  rest: ByteString[],
): Generator<GivenOption> {
  for (let at = 0; at < cluster.length; at++) {
    const letter = cluster[at]!;
    const known = letter === ":" ? -1 : letters.indexOf(letter);
    if (known < 0) throw new GetoptError(`invalid option -- '${letter}'`);
    if (letters[known + 1] !== ":") {
      yield { key: letter, value: undefined };
      continue;
    }
    const value = cluster.slice(at + 1) || rest.shift();
    if (value === undefined) {
      throw new GetoptError(`option requires an argument -- '${letter}'`);
    }
    yield { key: letter, value };
    return;
  }
}

function longOption(
  text: ByteString,
  options: readonly LongOption[],
  rest: ByteString[],
): GivenOption {
  const end = text.indexOf("=");
  const name = end < 0 ? text : text.slice(0, end);
  const attached = end < 0 ? undefined : text.slice(end + 1);
  const option = findLong(name, text, options);
  if (option.argument === "none" && attached !== undefined) {
    throw new GetoptError(
      `option '--${option.name}' doesn't allow an argument`,
    );
  }
  const value = option.argument === "required"
    ? attached ?? rest.shift()
    : attached;
  if (option.argument === "required" && value === undefined) {
    throw new GetoptError(`option '--${option.name}' requires an argument`);
  }
  return { key: option.key, value };
}

/** Finds an option by its name, or by an unambiguous abbreviation. */
function findLong(
  name: ByteString,
  text: ByteString,
  options: readonly LongOption[],
): LongOption {
  const exact = options.find((option) => option.name === name);
  if (exact !== undefined) return exact;
  const all = options.filter((option) => option.name.startsWith(name));
  const early = all.filter(({ isLate }) => !isLate);
  const [found, ...others] = early.length > 0 ? early : all;
  if (found === undefined) {
    throw new GetoptError(`unrecognized option '--${text}'`);
  }
  if (others.length === 0) return found;
  const names = [found, ...others].map(({ name }) => `'--${name}'`).join(" ");
  throw new GetoptError(
    `option '--${text}' is ambiguous; possibilities: ${names}`,
  );
}
