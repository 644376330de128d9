/** The checksum of the GPT. */

/** The polynomial of CRC-32, lowest bit first. */
const POLYNOMIAL = 0xedb88320;

/** The checksums of the 256 bytes. */
const CHECKSUMS = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) {
    crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
  }
  return crc;
});

/** The CRC-32 of some bytes, as UEFI, zlib and Ethernet compute it. */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc = CHECKSUMS[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}
