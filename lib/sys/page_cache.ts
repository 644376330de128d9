/**
 * Compares how much of a file is cached. The kernel counts pages, whose size differs
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

/** Amounts of a file in the page cache, in bytes. */
export interface PageCache {
  readonly cached: number;
  /** Bytes not written back yet, or being written back. */
  readonly dirty: number;
}

/** Bytes counted by one call: at most 7 ms if every page of them is cached. */
const RANGE = 1n << 30n;
/** Maximum number of calls: some 10 ms for a file of 8 TiB of which little is cached. */
const MAX_RANGES = 8192;

// linux/mman.h: struct cachestat_range, offset and length; length 0 is up to the end
const range = new BigUint64Array(2);
const rangeBytes = new Uint8Array(range.buffer);
const statBytes = new Uint8Array(CACHESTAT.size);
const statView = new DataView(statBytes.buffer);

/**
 * Returns `true` if more of a file is cached than these amounts, or it is too large to
 * find out, or a negative error number (`cachestat(2)`, from Linux 6.5 on).
 *
 * The kernel visits each cached page, so counting all pages of a large file would block
 * the event loop. This stops as soon as an amount is exceeded.
 */
export function isCachedBeyond(
  { cached, dirty }: PageCache,
  fd: number,
  size: bigint,
): boolean | number {
  let cachedPages = Math.floor(cached / pageSize());
  let dirtyPages = Math.floor(dirty / pageSize());
  let offset = 0n;
  for (let call = 0; call < MAX_RANGES; call++) {
    const isLast = offset + RANGE >= size;
    range[0] = offset;
    range[1] = isLast ? 0n : RANGE;
    const result = cachestat(fd);
    if (result < 0) return result;
    cachedPages -= pagesAt(CACHESTAT.nr_cache);
    dirtyPages -= pagesAt(CACHESTAT.nr_dirty) +
      pagesAt(CACHESTAT.nr_writeback);
    if (cachedPages < 0 || dirtyPages < 0) return true;
    if (isLast) return false;
    offset += RANGE;
  }
  return true;
}

/** Examines the range. Returns 0 or a negative error number. */
function cachestat(fd: number): number {
  return errnoResult(
    libc().syscallTwoPointers(
      SYSCALL_NUMBERS.cachestat,
      BigInt(fd),
      rangeBytes,
      statBytes,
      0n,
    ),
  );
}

function pagesAt(offset: number): number {
  return Number(statView.getBigUint64(offset, true));
}
