/** The arguments of a command. */
import { parseArgs } from "@std/cli/parse-args";
import { checkMinor } from "../arguments.ts";
import type { DeviceRef } from "../device_ref.ts";
import { quote } from "../errors.ts";
import { Loop, type LoopOpenOptions } from "../loop.ts";

/** The command line is wrong; nothing was done. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** The options of a command: long name to the letter, or to `""` where there is none. */
export interface Options {
  /** Options that take a value. */
  readonly values?: Readonly<Record<string, string>>;
  /** Options that do not. */
  readonly flags?: Readonly<Record<string, string>>;
  /** Options that can be turned on and off: `--autoclear`, `--no-autoclear`. */
  readonly switches?: readonly string[];
}

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
  const { values = {}, flags = {}, switches = [] } = options;
  const names = [...Object.entries(values), ...Object.entries(flags)];
  const parsed = parseArgs(args, {
    string: ["_", ...Object.keys(values)], // file names stay text: 007, 1e3
    boolean: [...Object.keys(flags), ...switches],
    negatable: switches,
    default: Object.fromEntries(switches.map((name) => [name, undefined])),
    alias: Object.fromEntries(names.filter(([, letter]) => letter !== "")),
    unknown: (arg, key) => {
      if (key === undefined) return true;
      throw new UsageError(`there is no option ${arg.replace(/=.*/s, "")}`);
    },
  });
  return {
    operands: parsed._.map(String),
    value: (name) => {
      const value = parsed[name] as string | undefined;
      if (value === "") throw new UsageError(`--${name} takes a value`);
      return value;
    },
    flag: (name) => parsed[name] === true,
    switched: (name) => parsed[name] as boolean | undefined,
  };
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
export function parseDevice(text: string): Exclude<DeviceRef, object> {
  return /^\d+$/.test(text) ? parseMinor(text) : text;
}

/** A loop number. */
export function parseMinor(text: string): number {
  if (!/^\d+$/.test(text)) {
    throw new UsageError(`${quote(text)} is no loop number`);
  }
  return asUsage(() => checkMinor(Number(text)));
}

/** Opens a device. */
export function openDevice(text: string, options: LoopOpenOptions): Loop {
  const device = parseDevice(text);
  return typeof device === "number"
    ? new Loop(device, options)
    : Loop.open(device, options);
}

/** The number of a device, which need not exist when it is given by name. */
export function minorOf(text: string): number {
  const digits = /^(?:(?:\/dev\/)?loop)?(\d+)$/.exec(text)?.[1];
  if (digits !== undefined) return parseMinor(digits);
  using loop = Loop.open(text, { readOnly: true });
  return loop.minor;
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
  return text === undefined ? undefined : parseSize(text, name);
}
