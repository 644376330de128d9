/** Reads tables of mounts in `/proc`. */
import { throwUnless } from "./loop_sysfs.ts";
import { makedev } from "../sys/stat.ts";
import { openLines } from "../sys/sysfs.ts";

/** A line of `mountinfo` as bytes, see proc(5). Fields are located on access. */
export class MountLine {
  readonly #bytes: Uint8Array;

  /** Creates a view of the bytes, valid as long as they are. */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** The ID of the mount, unique over all mount namespaces. */
  get id(): number {
    return decimal(this.#bytes, 0);
  }

  /** The device number of the mounted file system. */
  get device(): number {
    const start = this.#field(2);
    const colon = this.#bytes.indexOf(COLON, start);
    return makedev(
      decimal(this.#bytes, start),
      decimal(this.#bytes, colon + 1),
    );
  }

  /** The mount point. */
  get target(): string {
    return decoder.decode(this.targetBytes);
  }

  /** The mount point as bytes. */
  get targetBytes(): Uint8Array {
    return unescapeBytes(this.#text(this.#field(4)));
  }

  /** The options of the mount itself: `ro`, `nodev` … */
  get options(): string[] {
    return decoder.decode(this.#text(this.#field(5))).split(",");
  }

  /** The type of the file system. */
  get type(): string {
    return decoder.decode(this.#text(this.#afterSeparator(0)));
  }

  /**
   * The mount source as the user named it. For most file systems, that is an arbitrary
   * text.
   */
  get source(): string {
    return decoder.decode(
      unescapeBytes(this.#text(this.#afterSeparator(1))),
    );
  }

  /** Returns the start of a field. */
  #field(index: number, from = 0): number {
    let at = from;
    for (let field = 0; field < index; field++) {
      const blank = this.#bytes.indexOf(BLANK, at);
      if (blank < 0) return this.#bytes.length;
      at = blank + 1;
    }
    return at;
  }

  /** Returns the start of a field after the optional ones, which end in a dash. */
  #afterSeparator(index: number): number {
    let at = this.#field(6);
    while (at < this.#bytes.length) {
      const isSeparator = this.#bytes[at] === DASH &&
        this.#bytes[at + 1] === BLANK;
      at = this.#field(1, at);
      if (isSeparator) return this.#field(index, at);
    }
    return at;
  }

  #text(start: number): Uint8Array {
    const end = this.#bytes.indexOf(BLANK, start);
    return this.#bytes.subarray(start, end < 0 ? this.#bytes.length : end);
  }
}

const BLANK = " ".charCodeAt(0);
const COLON = ":".charCodeAt(0);
const DASH = "-".charCodeAt(0);
const BACKSLASH = "\\".charCodeAt(0);
const ZERO = "0".charCodeAt(0);

const decoder = new TextDecoder();

function decimal(bytes: Uint8Array, start: number): number {
  let value = 0;
  for (let at = start; at < bytes.length; at++) {
    const digit = bytes[at]! - ZERO;
    if (digit < 0 || digit > 9) break;
    value = value * 10 + digit;
  }
  return value;
}

/** Maximum number of mounts to read from a namespace. */
export const MAX_MOUNTS = 100_000;

/**
 * Reads the mounts that this process sees, up to `MAX_MOUNTS`. Each one is valid until
 * the next.
 *
 * @throws {LoopError} If they cannot be read.
 */
export function* ownMounts(): Generator<MountLine> {
  const path = "/proc/self/mountinfo";
  const lines = openLines(path);
  if (typeof lines === "number") throwUnless([], lines, path);
  else {
    using reader = lines;
    for (let count = 0; count < MAX_MOUNTS; count++) {
      const line = reader.next();
      if (line === undefined) return;
      if (typeof line === "number") return throwUnless([], line, path);
      yield new MountLine(line);
    }
  }
}

const encoder = new TextEncoder();

/**
 * Decodes blanks, newlines and backslashes, which the tables of `/proc` write as
 * `\040`.
 */
export function unescapeOctal(text: string): string {
  return decoder.decode(unescapeBytes(encoder.encode(text)));
}

function unescapeBytes(bytes: Uint8Array): Uint8Array {
  if (!bytes.includes(BACKSLASH)) return bytes;
  const result = new Uint8Array(bytes.length);
  let size = 0;
  for (let at = 0; at < bytes.length; at++) {
    if (bytes[at] === BACKSLASH) {
      result[size++] = (bytes[at + 1]! - ZERO) * 64 +
        (bytes[at + 2]! - ZERO) * 8 + (bytes[at + 3]! - ZERO);
      at += 3;
    } else {
      result[size++] = bytes[at]!;
    }
  }
  return result.subarray(0, size);
}
