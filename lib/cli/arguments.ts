/** The arguments of a command. */
import { parseArgs } from "@std/cli/parse-args";
import { checkBytes, checkMinor } from "../arguments.ts";
import { minorInName, minorOf } from "../device_ref.ts";
import { printable, quote } from "../errors.ts";
import type { Loop, LoopOpenOptions } from "../kernel/loop.ts";
import { openDevice as openAny } from "../kernel/nodes.ts";
import type { Option, Options } from "./command.ts";
import { exact } from "./files.ts";
import { UsageError } from "./usage_error.ts";

export { UsageError };

/** What a command was given. */
export interface Arguments {
  /** Everything that is no option. */
  readonly operands: string[];
  /** The value of an option; `undefined` when it was not given. */
  value(name: string): string | undefined;
  /** Whether a flag was given. */
  flag(name: string): boolean;
  /** What a switch was turned to; `undefined` when it was not given. */
  switched(name: string): boolean | undefined;
}

/** Parses the arguments of a command. Everything behind `--` is an operand. */
export function parse(args: string[], options: Options = {}): Arguments {
  const parsed = parseArgs(spell(args, options), {
    string: [
      "_", // file names stay text: 007, 1e3
      ...Object.keys(options),
    ],
  });
  const value = (name: string) => parsed[name] as string | undefined;
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

/** A value of that name may be no UTF-8: `fileOf` finds out what it is. */
const FILE = "FILE";
const ON = "on";
const OFF = "off";

/**
 * Spells every option out as `--name=value`, and refuses what is none: the parser would
 * take the word behind a flag for its value, and `-r5` for something else than `-r`.
 */
function spell(args: string[], options: Options): string[] {
  return new Speller(args, options).spell();
}

class Speller {
  readonly #options: Options;
  readonly #rest: string[];
  readonly #spelled: string[] = [];

  constructor(args: readonly string[], options: Options) {
    this.#options = options;
    this.#rest = [...args];
  }

  spell(): string[] {
    for (let arg; (arg = this.#rest.shift()) !== undefined;) {
      if (arg === "--") return [...this.#spelled, arg, ...this.#rest];
      const long = /^--([^=]+)(?:=(.*))?$/s.exec(arg);
      if (long !== null) this.#long(long[1]!, long[2]);
      else if (/^-./s.test(arg)) this.#letters(arg.slice(1));
      else this.#spelled.push(arg);
    }
    return this.#spelled;
  }

  #option(name: string): Option | undefined {
    return Object.hasOwn(this.#options, name) ? this.#options[name] : undefined;
  }

  #long(name: string, attached: string | undefined): void {
    const positive = name.replace(/^no-/, "");
    const kind = this.#option(name)?.value;
    if (kind !== undefined) {
      this.#add(name, this.#value(`--${name}`, kind, attached));
    } else if (attached !== undefined) {
      throw new UsageError(
        `there is no option --${printable(name)} with a value`,
      );
    } else if (this.#option(name) !== undefined) {
      this.#add(name, ON);
    } else if (this.#option(positive)?.negatable) {
      this.#add(positive, OFF);
    } else throw new UsageError(`there is no option --${printable(name)}`);
  }

  /** `rP`, `o4K`, `rPo` with its value in the next word. */
  #letters(letters: string): void {
    for (let index = 0; index < letters.length; index++) {
      const letter = letters[index]!;
      const name = Object.keys(this.#options)
        .find((name) => this.#option(name)?.letter === letter);
      if (name === undefined) {
        throw new UsageError(`there is no option -${letter}`);
      }
      const kind = this.#option(name)?.value;
      if (kind === undefined) {
        this.#add(name, ON);
        continue;
      }
      const attached = letters.slice(index + 1).replace(/^=/, "");
      this.#add(name, this.#value(`-${letter}`, kind, attached || undefined));
      return;
    }
  }

  #value(spelling: string, kind: string, attached?: string): string {
    const value = attached ?? this.#rest.shift();
    if (value === undefined || value === "") {
      throw new UsageError(`${spelling} takes a value`);
    }
    return kind === FILE ? value : exact(value);
  }

  #add(name: string, value: string): void {
    this.#spelled.push(`--${name}=${value}`);
  }
}

/** Refuses what the library says is a bad argument as wrong usage. */
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

/** The one operand of a command. */
export function only(operands: string[], name: string): string {
  const [operand, ...more] = operands;
  if (operand === undefined) throw new UsageError(`${name} is missing`);
  if (more.length > 0) {
    throw new UsageError(`${quote(more[0]!)} is one operand too many`);
  }
  return operand;
}

/** A device: `/dev/loop3`, `loop3`, `3`, or any path to its node. */
export function parseDevice(text: string): string | number {
  if (/^\d+$/.test(text)) return parseMinor(text);
  const minor = minorInName(text);
  if (minor !== undefined) asUsage(() => checkMinor(minor)); // one that no device can have
  return exact(text);
}

/** A loop number. */
function parseMinor(text: string): number {
  if (!/^\d+$/.test(text)) {
    throw new UsageError(`${quote(text)} is no loop number`);
  }
  return asUsage(() => checkMinor(Number(text)));
}

/** A loop number, or the name of a device that need not exist. */
export function parseNumber(text: string): number {
  return parseMinor(`${minorInName(text) ?? text}`);
}

/** Opens a device. */
export function openDevice(text: string, options: LoopOpenOptions): Loop {
  return openAny(parseDevice(text), options);
}

/** The number of a device, which need not exist when it is given by name. */
export function parseDeviceNumber(text: string): number {
  return minorOf(parseDevice(text));
}

const UNITS = ["K", "M", "G", "T", "P", "E"];

/** A number of bytes: `512`, `4K` and `4KiB` (1024), `4KB` (1000), `1.5M`. */
export function parseSize(text: string, name: string): bigint {
  const [, digits, fraction = "", unit, system] =
    /^(\d+)(?:\.(\d+))?(?:([KMGTPE])(iB|B)?)?$/i.exec(text) ?? [];
  const wrong = (why: string) =>
    new UsageError(`${quote(text)} is no ${name}: ${why}`);
  if (digits === undefined || (fraction !== "" && unit === undefined)) {
    throw wrong("a size is 512, 4K, 4KiB, 4KB or 1.5M");
  }
  const base = system?.toUpperCase() === "B" ? 1000n : 1024n;
  const exponent = unit === undefined
    ? 0
    : UNITS.indexOf(unit.toUpperCase()) + 1;
  const scaled = BigInt(digits + fraction) * base ** BigInt(exponent);
  const divisor = 10n ** BigInt(fraction.length);
  if (scaled % divisor !== 0n) throw wrong("it is no whole number of bytes");
  return scaled / divisor;
}

/** Milliseconds: `5s`, `500ms`. */
export function parseTimeout(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)(ms|s)$/.exec(text) ?? [];
  if (digits === undefined) {
    throw new UsageError(`${quote(text)} is no time: one is 5s or 500ms`);
  }
  return Number(digits) * (unit === "s" ? 1000 : 1);
}

/** A size for an option that may be absent. */
export function optionalSize(
  given: Arguments,
  name: string,
): bigint | undefined {
  const text = given.value(name);
  if (text === undefined) return undefined;
  return asUsage(() => checkBytes(parseSize(text, name), name));
}
