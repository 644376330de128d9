/** Reads a partition table from an open file or device. */
import { unwrap } from "../errors.ts";
import { pread } from "../sys/libc.ts";
import type { ByteSource } from "./byte_source.ts";

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
