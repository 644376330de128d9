/** Parses the arguments of commands. */
import { parseArgs } from "@std/cli/parse-args";
import { checkBytes, checkMinor } from "../arguments.ts";
import { checkBlockSize } from "../kernel/block_size.ts";
import { minorInName, minorOf } from "../device_ref.ts";
import { printable, quote } from "../errors.ts";
import type { Loop, LoopOpenOptions } from "../kernel/loop.ts";
import { openDevice as openAny } from "../kernel/nodes.ts";
import { DEFAULT_TIMEOUT } from "../waiting.ts";
import type { Option, Options } from "./command.ts";
import { exact } from "./files.ts";
import { spellings, suggest } from "./spelling.ts";
import { UsageError } from "./usage_error.ts";

export { UsageError };

/** Parsed arguments of a command. */
export interface Arguments {
  /** Arguments that are not options. */
  readonly operands: string[];
  /** Returns the value of an option, or `undefined` if the option was not given. */
  value(name: string): string | undefined;
  /** Returns `true` if a flag was given. */
  flag(name: string): boolean;
  /** Returns the state of a switch, or `undefined` if the switch was not given. */
  switched(name: string): boolean | undefined;
}

/** Parses the arguments of a command. Everything after `--` is an operand. */
export function parse(args: string[], options: Options = {}): Arguments {
  const parsed = parseArgs(new Speller(args, options).spelled, {
    // File names stay text: 007, 1e3.
    string: ["_", ...Object.keys(options)],
  });
  const value = (name: string) => {
    if (Object.hasOwn(options, name)) return parsed[name] as string | undefined;
    throw new Error(`The command does not declare an option --${name}`);
  };
  return {
    operands: parsed._.map(String),
    value,
    flag: (name) => value(name) !== undefined,
    switched: (name) => {
      const text = value(name);
      return text === undefined ? undefined : text === ON;
    },
  };
}

/** Names of values that need not be UTF-8: `fileOf` finds their bytes. */
const FILES = ["FILE", "DIR"];
const ON = "on";
const OFF = "off";

/**
 * Spells every option as `--name=value`, and refuses unknown options. The parser would
 * otherwise take the word after a flag for its value, and misread `-r5`.
 */
class Speller {
  readonly spelled: string[] = [];
  readonly #options: Options;
  readonly #rest: string[];
  readonly #given = new Map<string, string>();

  constructor(args: readonly string[], options: Options) {
    this.#options = options;
    this.#rest = [...args];
    for (let arg; (arg = this.#rest.shift()) !== undefined;) {
      if (arg === "--") {
        this.spelled.push(arg, ...this.#rest);
        return;
      }
      const long = /^--([^=]+)(?:=(.*))?$/s.exec(arg);
      if (long !== null) this.#long(long[1]!, long[2]);
      else if (/^-./s.test(arg)) this.#letters(arg.slice(1));
      else this.spelled.push(arg);
    }
  }

  #add(name: string, value: string): void {
    // The parser would keep the last value, and the others would have no effect.
    const isFlag = this.#option(name)?.value === undefined;
    const earlier = this.#given.get(name);
    if (isFlag && earlier !== undefined && earlier !== value) {
      throw new UsageError(`--${name} and --no-${name} exclude each other`);
    }
    if (!isFlag && earlier !== undefined) {
      throw new UsageError(`--${name} is given twice`);
    }
    this.#given.set(name, value);
    this.spelled.push(`--${name}=${value}`);
  }

  #option(name: string): Option | undefined {
    return Object.hasOwn(this.#options, name) ? this.#options[name] : undefined;
  }

  #long(name: string, attached: string | undefined): void {
    const positive = name.replace(/^no-/, "");
    const kind = this.#option(name)?.value;
    if (kind !== undefined) {
      this.#add(name, this.#value(`--${name}`, kind, attached));
      return;
    }
    const isFlag = this.#option(name) !== undefined;
    if (!isFlag && !this.#option(positive)?.negatable) {
      throw new UsageError(
        `unknown option --${printable(name)}${
          suggest(`--${name}`, this.#all())
        }`,
      );
    }
    if (attached !== undefined) {
      throw new UsageError(`--${name} takes no value`);
    }
    this.#add(isFlag ? name : positive, isFlag ? ON : OFF);
  }

  /** Returns the long spellings of all options. */
  #all(): string[] {
    return Object.entries(this.#options)
      .flatMap(([name, { negatable }]) => spellings(name, negatable));
  }

  /** Spells short options: `rP`, `o4K`, or `rPo` with its value in the next word. */
  #letters(letters: string): void {
    for (let index = 0; index < letters.length; index++) {
      const letter = letters[index]!;
      const name = Object.keys(this.#options)
        .find((name) => this.#option(name)?.letter === letter);
      if (name === undefined) {
        throw new UsageError(
          `unknown option -${letter}${suggest(`--${letters}`, this.#all())}`,
        );
      }
      const kind = this.#option(name)?.value;
      if (kind === undefined) {
        this.#add(name, ON);
        continue;
      }
      const attached = letters.slice(index + 1).replace(/^=/, "");
      this.#add(
        name,
        this.#value(`-${letter}`, kind, attached || undefined),
      );
      return;
    }
  }

  #value(spelling: string, kind: string, attached?: string): string {
    const value = attached ?? this.#rest.shift();
    if (value === undefined || value === "") {
      throw new UsageError(`${spelling} takes a value`);
    }
    return FILES.includes(kind) ? value : exact(value);
  }
}

/** Runs a check of the library, and reports a bad argument as wrong usage. */
export function asUsage<T>(check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (error instanceof TypeError || error instanceof RangeError) {
      throw new UsageError(error.message);
    }
    throw error;
  }
}

/** Returns the only operand of a command. */
export function only(operands: string[], name: string): string {
  const [operand, ...more] = operands;
  if (operand === undefined) throw new UsageError(`${name} is missing`);
  none(more);
  return operand;
}

/** Returns the two operands of a command. */
export function pair(
  operands: string[],
  first: string,
  second: string,
): readonly [first: string, second: string] {
  return [
    only(operands.slice(0, 1), first),
    only(operands.slice(1), second),
  ];
}

/** Refuses operands that a command does not take. */
export function none(operands: readonly string[]): void {
  const [operand] = operands;
  if (operand === undefined) return;
  throw new UsageError(`unexpected operand ${quote(operand)}`);
}

/** Parses a device: `/dev/loop3`, `loop3`, `3`, or any path to its node. */
export function parseDevice(text: string): string | number {
  if (/^\d+$/.test(text)) return parseMinor(text);
  const minor = minorInName(text);
  if (minor !== undefined) asUsage(() => checkMinor(minor)); // refuses a number that no device can have
  return exact(text);
}

/** Parses a loop number. */
function parseMinor(text: string): number {
  if (!/^\d+$/.test(text)) {
    throw new UsageError(`${quote(text)} is not a loop number`);
  }
  return asUsage(() => checkMinor(Number(text)));
}

/** Returns the loop number in the operands, or in the name of a device that need not exist, if there is one. */
export function optionalNumber(operands: string[]): number | undefined {
  if (operands.length === 0) return undefined;
  const text = only(operands, "N");
  return parseMinor(`${minorInName(text) ?? text}`);
}

/** Opens a device. */
export function openDevice(text: string, options: LoopOpenOptions): Loop {
  return openAny(parseDevice(text), options);
}

/** Returns the number of a device. A device that is given by name need not exist. */
export function parseDeviceNumber(text: string): number {
  return minorOf(parseDevice(text));
}

const UNITS = ["K", "M", "G", "T", "P", "E"];

/** Parses a number of bytes for an option: `512`, `4K` and `4KiB` (1024), `4KB` (1000), `1.5M`. */
export function parseSize(text: string, option: string): bigint {
  const [, digits, fraction = "", unit, system] =
    /^(\d+)(?:\.(\d+))?(?:([KMGTPE])(iB|B)?)?$/i.exec(text) ?? [];
  if (digits === undefined || (fraction !== "" && unit === undefined)) {
    throw new UsageError(
      `--${option} takes a size such as 512, 4K, 4KB or 1.5M, not ${
        quote(text)
      }`,
    );
  }
  const base = system?.toUpperCase() === "B" ? 1000n : 1024n;
  const exponent = unit === undefined
    ? 0
    : UNITS.indexOf(unit.toUpperCase()) + 1;
  const scaled = BigInt(digits + fraction) * base ** BigInt(exponent);
  const divisor = 10n ** BigInt(fraction.length);
  if (scaled % divisor === 0n) return scaled / divisor;
  throw new UsageError(
    `--${option} takes whole bytes: ${
      quote(text)
    } is not a whole number of them`,
  );
}

/** Returns the size given for an option, if there is one. */
export function optionalSize(
  given: Arguments,
  option: string,
): bigint | undefined {
  const text = given.value(option);
  if (text === undefined) return undefined;
  return asUsage(() => checkBytes(parseSize(text, option), `--${option}`));
}

/** Returns the block size given for `--sector-size`, if there is one. */
export function optionalBlockSize(given: Arguments): number | undefined {
  const size = optionalSize(given, "sector-size");
  return size === undefined
    ? undefined
    : asUsage(() => checkBlockSize(Number(size)));
}

/** Option that limits the wait for other users. */
export const TIMEOUT_OPTION: Options = {
  timeout: {
    value: "TIME",
    help: "how long to wait for other users: 5 or 5s (the default), 500ms",
  },
};

/** Returns the limit of the wait for other users, in milliseconds. */
export function timeoutIn(given: Arguments): number {
  const text = given.value("timeout");
  return text === undefined ? DEFAULT_TIMEOUT : parseTimeout(text);
}

/** Parses a time into milliseconds: `5` and `5s` are seconds, `500ms` milliseconds. */
export function parseTimeout(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)(ms|s)?$/.exec(text) ?? [];
  if (digits === undefined) {
    throw new UsageError(
      `--timeout takes a time such as 5, 5s or 500ms, not ${quote(text)}`,
    );
  }
  return Number(digits) * (unit === "ms" ? 1 : 1000);
}
