/** How much work is done at once: a few milliseconds. More of it goes to another thread. */

/** Bytes that are written to the page cache of a backing file. */
export const MAX_INLINE_BYTES: bigint = 8n << 20n;

/** Pages of the smallest size that hold so many bytes. */
export const MAX_INLINE_PAGES = 2048;

/** Clean pages that the last close of a device drops: 64 MiB. */
export const MAX_INLINE_CACHED_PAGES = 16384;
