/**
 * Counts the cached bytes of a file. The kernel counts pages, whose size differs
 * between machines.
 */
import { CACHESTAT } from "./layouts.ts";
import { errnoResult, libc, SYSCALL_NUMBERS } from "./libc.ts";
import { readBytes } from "./sysfs.ts";

/** Smallest page size of any machine. */
export const MIN_PAGE_SIZE = 4096;
/** `AT_PAGESZ`, linux/auxvec.h. */
const AT_PAGESZ = 6n;

let knownPageSize: number | undefined;

/** Returns the page size of this machine in bytes: 4, 16 or 64 KiB. */
export function pageSize(): number {
  return knownPageSize ??= readPageSize();
}

/**
 * Reads the page size from the auxiliary vector, which consists of pairs of 64-bit
 * numbers.
 */
function readPageSize(): number {
  const bytes = readBytes("/proc/self/auxv");
  if (typeof bytes !== "number") {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 0; at + 16 <= view.byteLength; at += 16) {
      if (view.getBigUint64(at, true) === AT_PAGESZ) {
        return Number(view.getBigUint64(at + 8, true));
      }
    }
  }
  return MIN_PAGE_SIZE;
}

// linux/mman.h: struct cachestat_range, from the start, no end
const WHOLE_FILE = new Uint8Array(16);
const statBytes = new Uint8Array(CACHESTAT.size);
const statView = new DataView(statBytes.buffer);

/** Cached amounts of a file in bytes. */
export interface PageCache {
  readonly cached: number;
  /** Bytes not written back yet, or being written back. */
  readonly dirty: number;
}

/**
 * Returns the cached amounts of a file (`cachestat(2)`, Linux 6.5), or a negative error
 * number.
 */
export function pageCacheOf(fd: number): PageCache | number {
  const result = errnoResult(
    libc().syscallTwoPointers(
      SYSCALL_NUMBERS.cachestat,
      BigInt(fd),
      WHOLE_FILE,
      statBytes,
      0n,
    ),
  );
  if (result < 0) return result;
  const pages = (offset: number) => Number(statView.getBigUint64(offset, true));
  return {
    cached: pages(CACHESTAT.nr_cache) * pageSize(),
    dirty: (pages(CACHESTAT.nr_dirty) + pages(CACHESTAT.nr_writeback)) *
      pageSize(),
  };
}
