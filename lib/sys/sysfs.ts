/**
 * Files and directories of sysfs and procfs, read through libc: Deno's own
 * calls would need `--allow-all` for them.
 *
 * As everywhere in this folder, a failure is a negative error number.
 */
import { DIRENT64 } from "./layouts.ts";
import {
  AT_FDCWD,
  close,
  type CString,
  cString,
  getDents,
  O_DIRECTORY,
  O_RDONLY,
  openAt,
  pread,
  readLinkAt,
  transientCString,
} from "./libc.ts";

const decoder = new TextDecoder();
const NEWLINE = 10;

// An attribute of sysfs has at most one page, of 64 KiB on some machines.
const page = new Uint8Array(65536);
const pageView = new DataView(page.buffer);

/** The bytes of an attribute, without the newline at the end. They are valid until the next call. */
export function readBytes(
  path: string | CString,
  directory: number = AT_FDCWD,
): Uint8Array | number {
  const name = typeof path === "string" ? transientCString(path) : path;
  const fd = openAt(directory, name, O_RDONLY);
  if (fd < 0) return fd;
  const size = pread(fd, page, 0);
  close(fd);
  if (size < 0) return size;
  return withoutNewline(size);
}

/** The number in an attribute, or a negative error number. A bigint where a `number` may not be exact. */
export function readDecimal(
  path: CString,
  directory: number,
): number | bigint {
  const fd = openAt(directory, path, O_RDONLY);
  if (fd < 0) return fd;
  const value = readOpenDecimal(fd);
  close(fd);
  return value;
}

/** {@linkcode readDecimal} of an attribute that is open already, as it is now. */
export function readOpenDecimal(fd: number): number | bigint {
  const size = pread(fd, page, 0);
  return size < 0 ? size : decimal(size);
}

const ZERO = "0".charCodeAt(0);
/** Numbers of so many digits are exact. */
const EXACT_DIGITS = 15;

/** The number whose digits are at the beginning of the page. To make a text of them first would take longer than to read them. */
function decimal(size: number): number | bigint {
  let value = 0;
  for (let at = 0; at < size; at++) {
    const digit = page[at]! - ZERO;
    if (digit < 0 || digit > 9) return value;
    if (at === EXACT_DIGITS) {
      return BigInt(decoder.decode(page.subarray(0, size)));
    }
    value = value * 10 + digit;
  }
  return value;
}

function withoutNewline(size: number): Uint8Array {
  return page.subarray(0, page[size - 1] === NEWLINE ? size - 1 : size);
}

/** The text of an attribute, without the newline at the end. */
export function readText(
  path: string | CString,
  directory: number = AT_FDCWD,
): string | number {
  const bytes = readBytes(path, directory);
  return typeof bytes === "number" ? bytes : decoder.decode(bytes);
}

/**
 * The lines of a file that the kernel makes, `/proc/self/mountinfo`, one at a time and as
 * bytes: others may make it hundreds of megabytes long. Close it.
 */
export class LineReader {
  readonly #fd: number;
  readonly #bytes = new Uint8Array(LINE_BUFFER);
  #offset = 0;
  #start = 0;
  #end = 0;
  /** Whether the rest of a line that does not fit is being left out. */
  #isSkipping = false;
  /** Whether a line was too long, and was left out. */
  hasSkipped = false;

  /** Reads from a descriptor, which belongs to the reader from now on. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** How many bytes were read. */
  get bytesRead(): number {
    return this.#offset;
  }

  /** The next line without its newline, valid until the next call; `undefined` at the end; or a negative error number. */
  next(): Uint8Array | undefined | number {
    for (;;) {
      const newline = this.#bytes.subarray(0, this.#end)
        .indexOf(NEWLINE, this.#start);
      if (newline >= 0) {
        const line = this.#bytes.subarray(this.#start, newline);
        this.#start = newline + 1;
        if (!this.#isSkipping) return line;
        this.#isSkipping = false;
        continue;
      }
      const size = this.#fill();
      if (size < 0) return size;
      if (size === 0) return this.#last();
    }
  }

  #fill(): number {
    this.#bytes.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
    if (this.#end === this.#bytes.length) {
      this.#isSkipping = true;
      this.hasSkipped = true;
      this.#end = 0;
    }
    const size = pread(this.#fd, this.#bytes.subarray(this.#end), this.#offset);
    if (size < 0) return size;
    this.#end += size;
    this.#offset += size;
    return size;
  }

  #last(): Uint8Array | undefined {
    const line = this.#bytes.subarray(this.#start, this.#end);
    this.#start = this.#end;
    return line.length === 0 || this.#isSkipping ? undefined : line;
  }

  /** Closes the file. */
  [Symbol.dispose](): void {
    close(this.#fd);
  }
}

/** More than any line of `/proc` has: two paths with each byte escaped, and a page of options, which are 64 KiB at most. */
const LINE_BUFFER = 1 << 17;

/** The lines of a file, or a negative error number. */
export function openLines(
  path: string,
  directory: number = AT_FDCWD,
): LineReader | number {
  const fd = openAt(directory, transientCString(path), O_RDONLY);
  return fd < 0 ? fd : new LineReader(fd);
}

/** A file of any length, which its kernel makes line by line: `/proc/swaps`. */
export function readWhole(path: string): string | number {
  const fd = openAt(AT_FDCWD, cString(path), O_RDONLY);
  if (fd < 0) return fd;
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (let offset = 0;;) {
      const size = pread(fd, page, offset);
      if (size < 0) return size;
      if (size === 0) return text;
      text += decoder.decode(page.subarray(0, size), { stream: true });
      offset += size;
    }
  } finally {
    close(fd);
  }
}

/** The target of a symbolic link. */
export function readLink(
  path: string,
  directory: number = AT_FDCWD,
): string | number {
  const bytes = readLinkBytes(path, directory);
  return typeof bytes === "number" ? bytes : decoder.decode(bytes);
}

/** The same as bytes, which are valid until the next call. */
export function readLinkBytes(
  path: string,
  directory: number = AT_FDCWD,
): Uint8Array | number {
  const size = readLinkAt(directory, transientCString(path), page);
  return size < 0 ? size : page.subarray(0, size);
}

/** A directory to be read from, or a negative error number. Close it. */
export function openDirectoryAt(
  path: string,
  directory: number = AT_FDCWD,
): number {
  return openAt(directory, transientCString(path), O_RDONLY | O_DIRECTORY);
}

/** Whether a directory has an entry whose name begins so, or a negative error number. */
export function hasEntry(path: string, prefix: Uint8Array): boolean | number {
  return inDirectory(
    path,
    (fd) => someEntry(fd, (at) => beginsWith(at + DIRENT64.d_name, prefix)),
  );
}

/** The names in a directory, in no order, without `.` and `..`. */
export function listDirectory(path: string): string[] | number {
  return inDirectory(path, (fd) => entryNames(fd, () => true));
}

/** The names of the directories in one that is open, or a negative error number. */
export function directoriesIn(fd: number): string[] | number {
  return entryNames(fd, (at) => page[at + DIRENT64.d_type] === DT_DIR);
}

const DT_DIR = 4;

function inDirectory<T>(path: string, use: (fd: number) => T): T | number {
  const fd = openDirectoryAt(path);
  if (fd < 0) return fd;
  try {
    return use(fd);
  } finally {
    close(fd);
  }
}

function entryNames(
  fd: number,
  isWanted: (at: number) => boolean,
): string[] | number {
  const names: string[] = [];
  const result = someEntry(fd, (at) => {
    const start = at + DIRENT64.d_name;
    const name = decoder.decode(page.subarray(start, page.indexOf(0, start)));
    if (name !== "." && name !== ".." && isWanted(at)) names.push(name);
    return false;
  });
  return typeof result === "number" ? result : names;
}

/** Whether some entry of an open directory is wanted, by where in the page it is; or a negative error number. */
function someEntry(
  fd: number,
  isWanted: (at: number) => boolean,
): boolean | number {
  for (;;) {
    const size = getDents(fd, page);
    if (size <= 0) return size < 0 ? size : false;
    for (
      let at = 0;
      at < size;
      at += pageView.getUint16(at + DIRENT64.d_reclen, true)
    ) {
      if (isWanted(at)) return true;
    }
  }
}

function beginsWith(at: number, prefix: Uint8Array): boolean {
  for (let index = 0; index < prefix.length; index++) {
    if (page[at + index] !== prefix[index]) return false;
  }
  return true;
}

/**
 * The names in a directory that is open, some at a time: others may have filled it. A
 * negative error number ends them.
 */
export function* namesIn(fd: number): Generator<string[] | number> {
  for (;;) {
    const size = getDents(fd, entries);
    if (size < 0) yield size;
    if (size <= 0) return;
    const names: string[] = [];
    for (
      let at = 0;
      at < size;
      at += entriesView.getUint16(at + DIRENT64.d_reclen, true)
    ) {
      const start = at + DIRENT64.d_name;
      const name = decoder.decode(
        entries.subarray(start, entries.indexOf(0, start)),
      );
      if (name !== "." && name !== "..") names.push(name);
    }
    yield names;
  }
}

// Some 300 entries: read in less than a millisecond.
const entries = new Uint8Array(8192);
const entriesView = new DataView(entries.buffer);
