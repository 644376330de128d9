/** Where the bytes of a partition table come from. */

/** Bytes that can be read anywhere: a device, an image file, memory. */
export interface ByteSource {
  /** How many bytes there are. */
  readonly size: number;
  /**
   * The bytes from `offset` on: `length` of them, fewer only at the end. They are
   * the reader's to keep: a later call does not change them.
   */
  read(offset: number, length: number): Uint8Array;
}

/** Exactly the bytes asked for; `undefined` where the source does not hold them all. */
export function readFully(
  source: ByteSource,
  offset: number,
  length: number,
): Uint8Array | undefined {
  // Offsets come from the table; one too large for a number is past the end too.
  if (offset < 0 || offset + length > source.size) return undefined;
  const bytes = source.read(offset, length);
  return bytes.length === length ? bytes : undefined;
}

/** The same bytes, as numbers. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
