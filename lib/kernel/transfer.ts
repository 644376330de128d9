/** Reads and writes bytes of a device, on this thread or another one. */
import { checkPosition } from "../arguments.ts";
import { quote, unwrap } from "../errors.ts";
import { EBADF, ENOSPC } from "../sys/errno.ts";
import { pread, preadAsync, pwrite, pwriteAsync } from "../sys/libc.ts";

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

/** Number of bytes of a failed call to repeat: a medium may take long to fail. */
const MAX_REPEATED = 4096;

/**
 * Moves the bytes on another thread. A call that fails there is repeated on this
 * thread, which can read the error.
 */
export async function transferAsync(
  direction: Direction,
  work: Transfer,
): Promise<number> {
  const { fd, bytes, position } = work;
  let done = 0;
  while (done < bytes.length) {
    const rest = bytes.subarray(done);
    let count = await direction.callAsync(fd, rest, position + done);
    if (count < 0) {
      const little = rest.subarray(0, MAX_REPEATED);
      count = direction.call(fd, little, position + done);
    }
    if (isEnd(count, done)) break;
    done += checkTransferred(direction, work, count);
  }
  return done;
}

/** Returns `true` if there is nothing left to read, or no room left to write. */
function isEnd(count: number, done: number): boolean {
  return count === 0 || (count === -ENOSPC && done > 0);
}

function checkTransferred(
  { operation, verb }: Direction,
  { path, position, bytes }: Transfer,
  count: number,
): number {
  return unwrap(count, () => ({
    action: `Cannot ${verb} ${bytes.length} bytes at ${position} of ${
      quote(path)
    }`,
    operation,
    path,
    hint: {
      [ENOSPC]: "the position is past the end of the device",
      [EBADF]: "the device is closed, or open for reading only",
    },
  }));
}
