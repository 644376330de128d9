/** Reads and writes bytes of a device, on this thread or another one. */
import { checkPosition } from "../arguments.ts";
import { LoopError, quote, unwrap } from "../errors.ts";
import { BLKGETSIZE64 } from "../sys/blk_uapi.ts";
import { EBADF, EIO, ENOSPC } from "../sys/errno.ts";
import {
  ioctlPointer,
  pread,
  preadAsync,
  pwrite,
  pwriteAsync,
} from "../sys/libc.ts";
import { MAX_REPEATED_TIME } from "../waiting.ts";

/** Bytes to read or write, and their place on the device. */
export interface Transfer {
  readonly fd: number;
  /** Path of the device, for messages. */
  readonly path: string;
  readonly bytes: Uint8Array;
  /** Offset on the device in bytes. */
  readonly position: number;
}

/** Validates the arguments of a transfer before any system call. */
export function checkTransfer(bytes: unknown, position: unknown): void {
  if (!(bytes instanceof Uint8Array)) {
    throw new TypeError("Cannot use the buffer: it must be a Uint8Array");
  }
  checkPosition(position);
}

/**
 * A system call that moves some of the bytes. Returns their number, or a negative error
 * number.
 */
type Call = (fd: number, bytes: Uint8Array, position: number) => number;

/** System calls for reading. */
export const READ = {
  call: pread,
  callAsync: preadAsync,
  operation: "pread",
  verb: "read",
} as const satisfies Direction;

/** System calls for writing. */
export const WRITE = {
  call: pwrite,
  callAsync: pwriteAsync,
  operation: "pwrite",
  verb: "write",
} as const satisfies Direction;

interface Direction {
  readonly call: Call;
  readonly callAsync: (...args: Parameters<Call>) => Promise<number>;
  readonly operation: string;
  readonly verb: string;
}

/**
 * Moves the bytes. Returns their number, which is lower than requested only at the end
 * of the device.
 */
export function transfer(direction: Direction, work: Transfer): number {
  const { fd, bytes, position } = work;
  let done = 0;
  while (done < bytes.length) {
    const count = direction.call(fd, bytes.subarray(done), position + done);
    if (isEnd(count, done)) break;
    done += checkTransferred(direction, work, count);
  }
  return done;
}

/** Maximum number of bytes of a failed call to repeat. */
const MAX_REPEATED = 4096;

/**
 * Moves the bytes on another thread. A call that failed quickly there is repeated on
 * this thread, which can read the error. A medium that took long to fail would block
 * the event loop for as long again, so its error becomes `EIO`, unless the kernel
 * reports another one without asking the medium.
 */
export async function transferAsync(
  direction: Direction,
  work: Transfer,
): Promise<number> {
  const { fd, bytes, position } = work;
  let done = 0;
  while (done < bytes.length) {
    const rest = bytes.subarray(done);
    const start = performance.now();
    let count = await direction.callAsync(fd, rest, position + done);
    if (count < 0) {
      const isQuick = performance.now() - start <= MAX_REPEATED_TIME;
      // The kernel refuses a position past the end, and even an empty write to a
      // read-only device, before it asks the medium.
      const mayRepeat = isQuick || position + done >= sizeOf(fd);
      const size = mayRepeat ? MAX_REPEATED : 0;
      count = direction.call(fd, rest.subarray(0, size), position + done);
      if (count === 0 && size === 0) throw unknownError(direction, work);
    }
    if (isEnd(count, done)) break;
    done += checkTransferred(direction, work, count);
  }
  return done;
}

/** Returns the size of a device, or 0 if it cannot be determined. */
function sizeOf(fd: number): number {
  const size = new BigUint64Array(1);
  ioctlPointer(fd, BLKGETSIZE64, new Uint8Array(size.buffer));
  return Number(size[0]);
}

/** Returns `true` if there is nothing left to read, or no room left to write. */
function isEnd(count: number, done: number): boolean {
  return count === 0 || (count === -ENOSPC && done > 0);
}

function checkTransferred(
  direction: Direction,
  work: Transfer,
  count: number,
): number {
  return unwrap(count, () => ({
    ...failureOf(direction, work),
    hint: {
      [ENOSPC]: "the position is past the end of the device",
      [EBADF]: "the device is closed, or open for reading only",
    },
  }));
}

function unknownError(direction: Direction, work: Transfer): LoopError {
  const { action, ...failure } = failureOf(direction, work);
  return new LoopError(action, {
    ...failure,
    errno: EIO,
    hint: "it took long to fail, and the kernel's reason is not known",
  });
}

function failureOf(
  { operation, verb }: Direction,
  { path, position, bytes }: Transfer,
): { action: string; operation: string; path: string } {
  return {
    action: `Cannot ${verb} ${bytes.length} bytes at ${position} of ${
      quote(path)
    }`,
    operation,
    path,
  };
}
