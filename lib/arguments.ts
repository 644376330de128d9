/**
 * Validates arguments before any system call: `TypeError` for the wrong type,
 * `RangeError` for a bad value.
 */
import { quote } from "./errors.ts";
import { type CString, cString } from "./sys/libc.ts";

/** Largest loop number: 20 bits, `MINORBITS` in linux/kdev_t.h. */
export const MAX_MINOR: number = 2 ** 20 - 1;
const MAX_OFFSET = 2n ** 63n - 1n;
const MAX_INT = 2 ** 31 - 1;

/**
 * Throws if an option is unknown: a misspelled `readonly` would otherwise attach for
 * writing.
 */
export function checkOptions(
  options: unknown,
  known: readonly string[],
): asserts options is object {
  if (
    typeof options !== "object" || options === null || Array.isArray(options)
  ) {
    throw new TypeError(
      `Cannot read the options: they must be an object, got ${show(options)}`,
    );
  }
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) {
      throw new TypeError(
        `Cannot use option "${name}": the options are ${known.join(", ")}`,
      );
    }
  }
}

function show(value: unknown): string {
  if (typeof value === "string") return quote(value);
  if (typeof value === "bigint") return `${value}n`;
  return typeof value === "object" && value !== null
    ? "an object"
    : String(value);
}

function checkInteger(
  value: unknown,
  name: string,
  minimum: number,
  maximum: number,
): number {
  if (typeof value !== "number") {
    throw new TypeError(
      `Cannot use ${show(value)} as ${name}: it must be a number`,
    );
  }
  if (!Number.isInteger(value) || value < minimum || value > maximum) {
    throw new RangeError(
      `Cannot use ${value} as ${name}: it must be an integer from ${minimum} to ${maximum}`,
    );
  }
  return value;
}

/** Validates a loop number. */
export function checkMinor(value: unknown, minimum = 0): number {
  return checkInteger(value, "a loop number", minimum, MAX_MINOR);
}

/** Validates a file descriptor. */
export function checkDescriptor(value: unknown, name: string): number {
  return checkInteger(value, `${name} (a file descriptor)`, 0, MAX_INT);
}

/** Validates permission bits. */
export function checkMode(value: unknown): number {
  return checkInteger(value, "mode", 0, 0o777);
}

/**
 * Validates a number of bytes in a file, a safe integer or a bigint, and converts it to
 * a bigint.
 */
export function checkBytes(value: unknown, name: string): bigint {
  if (typeof value !== "number" && typeof value !== "bigint") {
    throw new TypeError(
      `Cannot use ${show(value)} as ${name}: it must be a number or a bigint`,
    );
  }
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw new RangeError(
      `Cannot use ${value} as ${name}: it must be an integer (a bigint above 2^53-1)`,
    );
  }
  const bytes = BigInt(value);
  if (bytes < 0n || bytes > MAX_OFFSET) {
    throw new RangeError(
      `Cannot use ${value} as ${name}: it must be from 0 to 2^63-1`,
    );
  }
  return bytes;
}

/** Validates a position on a device, in bytes. */
export function checkPosition(value: unknown): number {
  return checkInteger(value, "position", 0, Number.MAX_SAFE_INTEGER);
}

/** Validates a boolean; `undefined` if the option was not given. */
export function checkBoolean(
  value: unknown,
  name: string,
): boolean | undefined {
  if (value !== undefined && typeof value !== "boolean") {
    throw new TypeError(
      `Cannot use ${show(value)} as ${name}: it must be true or false`,
    );
  }
  return value;
}

/** Validates a time in milliseconds; `Infinity` is allowed. */
export function checkTimeout(value: unknown): number {
  if (typeof value !== "number") {
    throw new TypeError(
      `Cannot use ${show(value)} as timeout: it must be a number`,
    );
  }
  if (!(value >= 0)) {
    throw new RangeError(
      `Cannot use ${value} as timeout: it must be at least 0 milliseconds`,
    );
  }
  return value;
}

/** Validates an `AbortSignal`; `undefined` if it was not given. */
export function checkSignal(value: unknown): AbortSignal | undefined {
  if (value !== undefined && !(value instanceof AbortSignal)) {
    throw new TypeError(
      `Cannot use ${show(value)} as signal: it must be an AbortSignal`,
    );
  }
  return value;
}

/** A path, as text and as bytes. */
export interface FilePath {
  /** Text of the path, for messages. */
  readonly text: string;
  /** The exact bytes of the path for the kernel, NUL-terminated. */
  readonly bytes: CString;
}

const decoder = new TextDecoder();

/**
 * Validates a path given as text or as a `file:` URL. A URL can name a file whose name
 * is not UTF-8 (`file:///tmp/%ff.img`).
 */
export function checkPath(path: unknown): FilePath {
  if (path instanceof URL) return checkUrl(path);
  if (typeof path !== "string") {
    throw new TypeError(
      `Cannot use ${show(path)} as a path: it must be a string or a URL`,
    );
  }
  if (path.includes("\0")) {
    throw new TypeError(
      `Cannot use ${quote(path)} as a path: it contains a NUL character`,
    );
  }
  if (!path.isWellFormed()) {
    throw new TypeError(
      `Cannot use ${quote(path)} as a path: it contains an unpaired surrogate`,
    );
  }
  return { text: path, bytes: cString(path) };
}

function checkUrl(url: URL): FilePath {
  if (url.protocol !== "file:" || url.host !== "") {
    throw new TypeError(
      `Cannot use ${
        quote(url.href)
      } as a path: it must be a file: URL without a host`,
    );
  }
  const bytes: number[] = [];
  const { pathname } = url; // ASCII, because everything else is percent-encoded
  for (let at = 0; at < pathname.length; at++) {
    const digits = pathname[at] === "%" ? pathname.slice(at + 1, at + 3) : "";
    if (/^[0-9a-f]{2}$/i.test(digits)) {
      bytes.push(parseInt(digits, 16));
      at += 2;
    } else {
      bytes.push(pathname.charCodeAt(at));
    }
  }
  if (bytes.includes(0)) {
    throw new TypeError(
      `Cannot use ${quote(url.href)} as a path: it contains a NUL character`,
    );
  }
  return {
    text: decoder.decode(new Uint8Array(bytes)),
    bytes: new Uint8Array([...bytes, 0]),
  };
}
