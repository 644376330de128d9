/** Reads devices and files that may be slow without blocking the event loop. */
import { LoopError, unwrap } from "../errors.ts";
import { FileDescriptor } from "../kernel/file_descriptor.ts";
import { EIO } from "../sys/errno.ts";
import { duplicate, preadAsync } from "../sys/libc.ts";
import { abortable } from "../waiting.ts";
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
      await abortable(source.fetch(error.blocks), signal);
    }
  }
}

/** Blocks that must be read before the work can continue. */
class Missing extends Error {
  readonly blocks: readonly number[];

  constructor(blocks: readonly number[]) {
    super(`Cannot continue without the blocks ${blocks.join(", ")}`);
    this.blocks = blocks;
  }
}

/** Size of a block in bytes. The first one includes the superblock of a Btrfs, after 64 KiB. */
const BLOCK = 72 << 10;

/** Number of bytes at the end that include the superblock of a RAID. */
const END = 64 << 10;

/** A failure after this time, in milliseconds, would block the event loop if repeated. */
const SHORT_READ = 20;

/** Blocks of a device that another thread has read. */
class ReadAhead implements ByteSource, Disposable {
  readonly size: number;
  readonly #start: number;
  /** A copy, because the other one may be closed during a read. */
  readonly #descriptor: FileDescriptor;
  readonly #direct: DescriptorSource;
  readonly #name: string;
  readonly #blocks = new Map<number, Uint8Array>();
  /** Blocks whose reads failed after a long time. */
  readonly #failed = new Set<number>();
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
    const blocks = blocksOf(offset, end);
    const missing = blocks.filter((block) => !this.#blocks.has(block));
    if (missing.length > 0) throw new Missing(missing);
    const bytes = new Uint8Array(end - offset);
    for (const number of blocks) {
      const at = number * BLOCK;
      const block = this.#blocks.get(number)!;
      const part = block.subarray(Math.max(0, offset - at), end - at);
      const isWhole = block.length >= Math.min(BLOCK, end - at);
      if (!isWhole) {
        if (this.#failed.has(number)) throw this.#failure();
        return this.#direct.read(offset, length);
      }
      bytes.set(part, Math.max(0, at - offset));
    }
    return bytes;
  }

  /** Reads the first block and the end, where most superblocks are. */
  async begin(): Promise<void> {
    const end = blocksOf(Math.max(0, this.size - END), this.size);
    await this.fetch(new Set([...blocksOf(0, 1), ...end]));
  }

  async fetch(blocks: Iterable<number>): Promise<void> {
    this.#reads = Promise.all(
      Array.from(blocks, (block) => this.#fetchOne(block)),
    );
    await this.#reads;
    this.#reads = undefined;
  }

  async #fetchOne(block: number): Promise<void> {
    const at = block * BLOCK;
    const bytes = new Uint8Array(Math.min(BLOCK, this.size - at));
    const { fd } = this.#descriptor;
    const start = performance.now();
    let done = 0;
    let count;
    do {
      const rest = bytes.subarray(done);
      count = await preadAsync(fd, rest, this.#start + at + done);
      done += Math.max(0, count);
    } while (count > 0 && done < bytes.length);
    const isSlow = performance.now() - start > SHORT_READ;
    if (count < 0 && isSlow) this.#failed.add(block);
    this.#blocks.set(block, bytes.subarray(0, done));
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
    const close = () => this.#descriptor.close();
    if (this.#reads === undefined) close();
    else this.#reads.then(close, close);
  }
}

/** Returns the numbers of the blocks of a range. */
function blocksOf(start: number, end: number): number[] {
  const first = Math.floor(start / BLOCK);
  const count = Math.ceil(end / BLOCK) - first;
  return Array.from({ length: count }, (_, index) => first + index);
}
