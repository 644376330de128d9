/** Determines the logical block sizes that the running kernel supports. */
import { kernelVersion } from "../sys/libc.ts";
import { MIN_PAGE_SIZE, pageSize } from "../sys/page_cache.ts";

const MIN_BLOCK = 512;
const MAX_BLOCK = 65536;

/** Validates a logical block size for this kernel. */
export function checkBlockSize(value: unknown): number {
  if (typeof value !== "number") {
    throw new TypeError(
      `Cannot use ${String(value)} as block size: it must be a number`,
    );
  }
  const isPowerOfTwo = Number.isInteger(value) && value >= MIN_BLOCK &&
    value <= MAX_BLOCK && (value & (value - 1)) === 0;
  if (!isPowerOfTwo) {
    throw new RangeError(
      `Cannot use ${value} as block size: it must be a power of two from ${MIN_BLOCK} to ${MAX_BLOCK}`,
    );
  }
  // LOOP_CONFIGURE with an unsupported block size fails only after it has changed the
  // device, so the kernel's own check is too late.
  if (
    value > MIN_PAGE_SIZE &&
    value > maximumBlockSize(kernelVersion(), pageSize())
  ) {
    throw new RangeError(
      `Cannot use ${value} as block size: before Linux 6.15 it must be at most the page size`,
    );
  }
  return value;
}

/** Returns the largest block size: the page size, or 64 KiB from Linux 6.15 on. */
export function maximumBlockSize(
  version: [major: number, minor: number] | undefined,
  page: number,
): number {
  const [major, minor] = version ?? [0, 0];
  return major > 6 || (major === 6 && minor >= 15) ? MAX_BLOCK : page;
}
