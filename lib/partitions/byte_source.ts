/** Sources of the bytes of a partition table. */
import { unwrap } from "../errors.ts";
import { pread } from "../sys/libc.ts";

/** Bytes with random access: a device, an image file, memory. */
export interface ByteSource {
  /** The number of bytes. */
  readonly size: number;
  /**
   * Returns `length` bytes from `offset` on, fewer only at the end. A later call does
   * not change them.
   */
  read(offset: number, length: number): Uint8Array;
}

/**
 * Returns exactly the requested bytes, or `undefined` if the source does not have them
 * all.
 */
export function readFully(
  source: ByteSource,
  offset: number,
  length: number,
): Uint8Array | undefined {
  // Offsets come from the table. One too large for a number is also past the end.
  if (offset < 0 || offset + length > source.size) return undefined;
  const bytes = source.read(offset, length);
  return bytes.length === length ? bytes : undefined;
}

/** Returns a view of the same bytes. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The bytes of an open file from `start` on. */
export class DescriptorSource implements ByteSource {
  readonly size: number;
  readonly #fd: number;
  readonly #start: number;
  readonly #name: string;

  constructor(
    fd: number,
    range: { start: number; size: number },
    name: string,
  ) {
    this.#fd = fd;
    this.#start = range.start;
    this.size = range.size;
    this.#name = name;
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(
      Math.max(0, Math.min(length, this.size - offset)),
    );
    let done = 0;
    while (done < bytes.length) {
      const rest = bytes.subarray(done);
      const count = unwrap(
        pread(this.#fd, rest, this.#start + offset + done),
        () => ({
          action: `Cannot read the partition table of ${this.#name}`,
          operation: "pread",
        }),
      );
      if (count === 0) break;
      done += count;
    }
    return bytes.subarray(0, done);
  }
}
