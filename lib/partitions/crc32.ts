/** Computes the checksum of the GPT. */

/** The polynomial of CRC-32, lowest bit first. */
const POLYNOMIAL = 0xedb88320;

/**
 * Checksums of the 256 bytes followed by 0, 1, 2 and 3 zero bytes. Four tables process
 * four bytes at a time, six times faster; a hostile table has megabytes of entries.
 */
const [ALONE, BEFORE_1, BEFORE_2, BEFORE_3] = makeTables();

function makeTables(): [Uint32Array, Uint32Array, Uint32Array, Uint32Array] {
  const alone = Uint32Array.from({ length: 256 }, (_, byte) => {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    }
    return crc;
  });
  const addZero = (crc: number) => (crc >>> 8) ^ alone[crc & 0xff]!;
  const before1 = alone.map(addZero);
  const before2 = before1.map(addZero);
  return [alone, before1, before2, before2.map(addZero)];
}

/** Returns the CRC-32 of some bytes, as UEFI, zlib and Ethernet compute it. */
export function crc32(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const whole = bytes.length - bytes.length % 4;
  let crc = ~0;
  for (let at = 0; at < whole; at += 4) {
    crc ^= view.getInt32(at, true);
    crc = BEFORE_3[crc & 0xff]! ^ BEFORE_2[(crc >>> 8) & 0xff]! ^
      BEFORE_1[(crc >>> 16) & 0xff]! ^ ALONE[crc >>> 24]!;
  }
  for (const byte of bytes.subarray(whole)) {
    crc = ALONE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}
