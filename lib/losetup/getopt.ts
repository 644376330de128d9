/** Options as `getopt_long(3)` of glibc takes them. */
import type { ByteString } from "./byte_string.ts";

/** An option with a long name. */
export interface LongOption {
  readonly name: string;
  /** What it is called in the result: its letter, where it has one. */
  readonly key: string;
  readonly argument: "none" | "required" | "optional";
  /** Only what abbreviates no other option abbreviates this one. */
  readonly isLate?: boolean;
}

/** Which options there are. */
export interface Grammar {
  /** Letters; those that take an argument with a colon behind. */
  readonly letters: string;
  readonly long: readonly LongOption[];
  /** Whether an operand ends the options, as `POSIXLY_CORRECT` wants it. */
  stopsAtOperand(): boolean;
}

/** An option that was given. */
export interface GivenOption {
  readonly key: string;
  readonly value: ByteString | undefined;
}

/** The command line is wrong. */
export class GetoptError extends Error {
  override readonly name = "GetoptError";
}

/** The options one after the other, so that what comes first counts first. Operands are put aside. */
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

/** By its name, or the beginning of it where only one option begins so. */
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
