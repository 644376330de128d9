/**
 * Reads the mappings of processes on another thread, with a time limit.
 *
 * The kernel locks the address space of the process for that. A process that unmaps a
 * file of a file server holds the lock until the server answers, which may be never.
 */
import { AT_STATX_DONT_SYNC, type Stat, statOf } from "../sys/stat.ts";
import {
  AT_FDCWD,
  close,
  cString,
  openPathAsync,
  preadAsync,
} from "../sys/libc.ts";
import { sleep, Slices, within } from "../waiting.ts";
import type { FileDescriptor } from "./file_descriptor.ts";
import { hasWaiting } from "./processes.ts";

/** Time limit for one call, in milliseconds. */
const PATIENCE = 300;
/** Time between two checks of a process, in milliseconds. */
const PAUSE = 10;
/** Maximum number of threads that may be blocked by processes, over all searches. */
const MAX_STUCK = 16;
let stuck = 0;

/** Result of a call that took too long. */
export const STUCK: unique symbol = Symbol("stuck");

/**
 * Returns the result of a call on another thread, or `STUCK` if it takes too long.
 * Calls `late` when the thread has finished, or at once if it was not started.
 */
async function patiently<T>(
  call: () => Promise<T>,
  late: (result?: T) => void,
): Promise<T | typeof STUCK> {
  if (stuck >= MAX_STUCK) {
    late();
    return STUCK;
  }
  const promise = call();
  const result = await within(promise, PATIENCE);
  if (result !== undefined) return result;
  stuck++;
  promise.then(late, () => {}).finally(() => stuck--);
  return STUCK;
}

/**
 * Returns `true` if a process is blocked in the kernel for longer than the time limit.
 * Takes ownership of its directory. Reading its mappings might block too and keep this
 * process from exiting, because no signal wakes such a thread.
 */
export async function isHung(directory: FileDescriptor): Promise<boolean> {
  using process = directory;
  const end = performance.now() + PATIENCE;
  const slices = new Slices();
  while (await hasWaiting(process.fd, slices)) {
    if (performance.now() > end) return true;
    await sleep(PAUSE, undefined);
  }
  return false;
}

/**
 * Reads the lines of `/proc/PID/maps`, a chunk at a time, without their newlines. Takes
 * ownership of the descriptor. Yields -1 if they cannot be read.
 */
export async function* readMappings(
  fd: number,
): AsyncGenerator<Uint8Array[] | -1 | typeof STUCK> {
  let isOurs = true;
  try {
    let rest = new Uint8Array(0);
    for (let offset = 0;;) {
      const chunk = new Uint8Array(CHUNK);
      const size = await patiently(
        () => preadAsync(fd, chunk, offset),
        () => close(fd),
      );
      if (size === STUCK) {
        isOurs = false; // the thread closes it when it has finished
        return yield STUCK;
      }
      if (size < 0) return yield -1;
      if (size === 0) return;
      offset += size;
      const bytes = new Uint8Array(rest.length + size);
      bytes.set(rest);
      bytes.set(chunk.subarray(0, size), rest.length);
      const lines: Uint8Array[] = [];
      let start = 0;
      for (let end; (end = bytes.indexOf(NEWLINE, start)) >= 0;) {
        lines.push(bytes.subarray(start, end));
        start = end + 1;
      }
      rest = bytes.slice(start);
      yield lines;
    }
  } finally {
    if (isOurs) close(fd);
  }
}

// The kernel returns a page of lines at a time.
const CHUNK = 1 << 16;
const NEWLINE = 10;

/**
 * Examines the file of a mapping, by its range in `map_files`. Returns `undefined` if
 * it cannot be examined.
 */
export async function mappedFile(
  pid: number,
  range: string,
): Promise<Stat | undefined | typeof STUCK> {
  const path = cString(`/proc/${pid}/map_files/${range}`);
  const fd = await patiently(
    () => openPathAsync(AT_FDCWD, path),
    (fd = -1) => fd >= 0 && close(fd),
  );
  if (fd === STUCK) return STUCK;
  if (fd < 0) return undefined;
  const stat = statOf(fd, AT_STATX_DONT_SYNC);
  close(fd);
  return typeof stat === "number" ? undefined : stat;
}
