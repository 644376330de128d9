/** Sources of the bytes of a partition table. */

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
