/** Reads devices and files that may be slow without blocking the event loop. */
import { LoopError, unwrap } from "../errors.ts";
import { FileDescriptor, takeDescriptor } from "../kernel/file_descriptor.ts";
import { EIO } from "../sys/errno.ts";
import { closeAsync, duplicate, preadAsync } from "../sys/libc.ts";
import { abortable, MAX_REPEATED_TIME } from "../waiting.ts";
import { type ByteSource, DescriptorSource } from "./byte_source.ts";

/** Part of an open device or file, in bytes. */
export interface Readable {
  readonly fd: number;
  /** Name for messages. */
  readonly name: string;
  readonly start: number;
  readonly size: number;
  /** Signal used to stop waiting for the bytes. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs work that reads some bytes of a device. The bytes are read on another thread, where
 * errno is lost. Bytes that cannot be read there are read on this thread, which reports
 * the error. A failure that took long is reported as EIO. The work starts over whenever it
 * needs more bytes, so it must do nothing else.
 */
export async function readAhead<T>(
  readable: Readable,
  work: (source: ByteSource) => T,
): Promise<T> {
  using source = new ReadAhead(readable);
  const { signal } = readable;
  await abortable(source.begin(), signal);
  for (;;) {
    try {
      return work(source);
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      await abortable(source.fetch(error.ranges), signal);
    }
  }
}

/** A range of bytes, without the last one. */
interface Range {
  readonly start: number;
  readonly end: number;
}

/** Ranges that must be read before the work can continue. */
class Missing extends Error {
  readonly ranges: readonly Range[];

  constructor(ranges: readonly Range[]) {
    const places = ranges.map(({ start, end }) => `${start} to ${end}`);
    super(`Cannot continue without the bytes ${places.join(", ")}`);
    this.ranges = ranges;
  }
}

/** Size of a block in bytes. The first one includes the superblock of a Btrfs, after 64 KiB. */
const BLOCK = 72 << 10;

/** Number of bytes at the end that include the superblock of a RAID. */
const END = 64 << 10;

/** Blocks of a device that another thread has read. */
class ReadAhead implements ByteSource, Disposable {
  readonly size: number;
  readonly #start: number;
  /** A copy, because the other one may be closed during a read. */
  readonly #descriptor: FileDescriptor;
  readonly #direct: DescriptorSource;
  readonly #name: string;
  /** The bytes of ranges that were read, up to the first that failed. */
  readonly #found = new Map<string, Uint8Array>();
  /** Ranges whose reads failed after a long time. */
  readonly #failed = new Set<string>();
  /** The reads in progress, if any. */
  #reads: Promise<unknown> | undefined;

  constructor({ fd, name, start, size }: Readable) {
    this.size = size;
    this.#start = start;
    this.#name = name;
    this.#descriptor = new FileDescriptor(
      unwrap(duplicate(fd), () => ({
        action: `Cannot read ${name}`,
        operation: "fcntl",
      })),
    );
    const range = { start, size };
    this.#direct = new DescriptorSource(this.#descriptor.fd, range, name);
  }

  read(offset: number, length: number): Uint8Array {
    const end = Math.min(offset + length, this.size);
    if (end <= offset) return new Uint8Array();
    const blocks = blocksOf(offset, end, this.size);
    const missing = blocks.filter((block) => !this.#found.has(keyOf(block)));
    if (missing.length > 0) throw new Missing(missing);
    const bytes = new Uint8Array(end - offset);
    for (const block of blocks) {
      const found = this.#found.get(keyOf(block))!;
      const isWhole = block.start + found.length >= Math.min(block.end, end);
      if (!isWhole) {
        return this.#failed.has(keyOf(block))
          ? this.#exactly({ start: offset, end })
          : this.#direct.read(offset, length);
      }
      const part = found.subarray(
        Math.max(0, offset - block.start),
        end - block.start,
      );
      bytes.set(part, Math.max(0, block.start - offset));
    }
    return bytes;
  }

  /** Returns the bytes of a range that a block includes, of which others cannot be read. */
  #exactly(range: Range): Uint8Array {
    const key = keyOf(range);
    const found = this.#found.get(key);
    if (found === undefined) throw new Missing([range]);
    if (this.#failed.has(key)) throw this.#failure();
    const length = range.end - range.start;
    return found.length < length
      ? this.#direct.read(range.start, length)
      : found;
  }

  /** Reads the first block and the end, where most superblocks are. */
  async begin(): Promise<void> {
    const { size } = this;
    const first = blocksOf(0, 1, size);
    const last = blocksOf(Math.max(first[0]?.end ?? 0, size - END), size, size);
    await this.fetch([...first, ...last]);
  }

  async fetch(ranges: readonly Range[]): Promise<void> {
    this.#reads = Promise.all(ranges.map((range) => this.#fetchOne(range)));
    await this.#reads;
    this.#reads = undefined;
  }

  async #fetchOne(range: Range): Promise<void> {
    const bytes = new Uint8Array(range.end - range.start);
    const { fd } = this.#descriptor;
    let done = 0;
    while (done < bytes.length) {
      const position = this.#start + range.start + done;
      const begin = performance.now();
      const count = await preadAsync(fd, bytes.subarray(done), position);
      if (count <= 0) {
        const isSlow = performance.now() - begin > MAX_REPEATED_TIME;
        if (count < 0 && isSlow) this.#failed.add(keyOf(range));
        break;
      }
      done += count;
    }
    this.#found.set(keyOf(range), bytes.subarray(0, done));
  }

  #failure(): LoopError {
    return new LoopError(`Cannot read the partition table of ${this.#name}`, {
      errno: EIO,
      operation: "pread",
      hint: "it could not be read, and another attempt would take long",
    });
  }

  /**
   * Closes the descriptor when no read is in progress: another file could get its
   * number.
   */
  [Symbol.dispose](): void {
    if (this.#reads === undefined) return this.#descriptor.close();
    // On another thread: if all others have closed the device, the kernel writes back.
    const close = () => closeAsync(takeDescriptor(this.#descriptor));
    this.#reads.then(close, close);
  }
}

/** Returns the blocks of a device that include a range. */
function blocksOf(start: number, end: number, size: number): Range[] {
  const first = Math.floor(start / BLOCK);
  const count = Math.max(0, Math.ceil(Math.min(end, size) / BLOCK) - first);
  return Array.from({ length: count }, (_, index) => ({
    start: (first + index) * BLOCK,
    end: Math.min((first + index + 1) * BLOCK, size),
  }));
}

function keyOf({ start, end }: Range): string {
  return `${start}-${end}`;
}
