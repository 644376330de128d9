/** Builds disks with partition tables by hand in memory. */
import type { ByteSource } from "../../lib/partitions/byte_source.ts";
import { crc32 } from "../../lib/partitions/gpt.ts";

/** Default type of partitions: "Linux filesystem". */
export const LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
/** Type of an EFI system partition. */
export const EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

const encoder = new TextEncoder();

/** Returns a source of bytes in memory, which throws on reads beyond them. */
export function memory(bytes: Uint8Array): ByteSource {
  const size = bytes.length;
  return {
    size,
    read(offset, length): Uint8Array {
      if (!(offset >= 0 && length >= 0 && offset + length <= size)) {
        throw new RangeError(`Cannot read ${length} bytes at ${offset}`);
      }
      return bytes.slice(offset, offset + length);
    },
  };
}

/** Returns a view of the same bytes. */
export function viewOf(bytes: Uint8Array, offset = 0): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset + offset);
}

/** A slot of a boot record, in sectors. */
export interface SlotParts {
  type?: number;
  start: number;
  count: number;
  bootFlag?: number;
}

/** Writes a boot record. Slots that are not given are empty. */
export function writeBootRecord(
  image: Uint8Array,
  offset: number,
  slots: (SlotParts | undefined)[],
): void {
  const view = viewOf(image, offset);
  for (const [index, slot] of slots.entries()) {
    const at = 446 + index * 16;
    view.setUint8(at, slot?.bootFlag ?? 0);
    view.setUint8(at + 4, slot === undefined ? 0 : slot.type ?? 0x83);
    view.setUint32(at + 8, slot?.start ?? 0, true);
    view.setUint32(at + 12, slot?.count ?? 0, true);
  }
  image.set([0x55, 0xaa], offset + 510);
}

/** Parts of an MBR disk, in sectors from the start of the disk. */
export interface MbrParts {
  size?: number;
  sectorSize?: number;
  diskId?: number;
  slots?: (SlotParts | undefined)[];
  /** Extended boot records: their sectors and slots. */
  records?: { sector: number; slots: (SlotParts | undefined)[] }[];
}

/** Returns a disk with an MBR. */
export function mbrImage(parts: MbrParts = {}): Uint8Array {
  const { size = 1 << 20, sectorSize = 512, diskId = 0x1234abcd } = parts;
  const image = new Uint8Array(size);
  writeBootRecord(image, 0, parts.slots ?? []);
  viewOf(image).setUint32(440, diskId, true);
  for (const { sector, slots } of parts.records ?? []) {
    writeBootRecord(image, sector * sectorSize, slots);
  }
  return image;
}

/** Returns two primary partitions and an extended one with three logical ones. */
export function logicalParts(): MbrParts {
  return {
    slots: [
      { start: 64, count: 64, bootFlag: 0x80 },
      { start: 128, count: 64, type: 0x0c },
      { start: 256, count: 1024, type: 0x05 },
    ],
    records: [
      {
        sector: 256,
        slots: [{ start: 8, count: 100 }, { start: 256, count: 256, type: 5 }],
      },
      {
        sector: 512,
        slots: [
          { start: 8, count: 200, type: 0x82 },
          { start: 512, count: 256, type: 5 },
        ],
      },
      { sector: 768, slots: [{ start: 1, count: 255, type: 0x0c }] },
    ],
  };
}

/** An entry of a GPT, in sectors. */
export interface GptPartition {
  /** Its place in the array, starting at 1; by default after the previous entry. */
  number?: number;
  first: number;
  last: number;
  type?: string;
  uuid?: string;
  /** A text, or UTF-16 code units. */
  name?: string | number[];
}

/** Parts of a GPT disk. */
export interface GptParts {
  size?: number;
  sectorSize?: number;
  entryCount?: number;
  entrySize?: number;
  partitions?: GptPartition[];
}

/** Positions in a GPT image built by `gptImage`. */
export interface GptLayout {
  sectorSize: number;
  arraySectors: number;
  firstUsable: number;
  lastUsable: number;
  lastSector: number;
}

/** Returns the positions that `gptImage` uses. */
export function gptLayout(parts: GptParts = {}): GptLayout {
  const { size = 1 << 20, sectorSize = 512 } = parts;
  const { entryCount = 128, entrySize = 128 } = parts;
  const arraySectors = Math.ceil(entryCount * entrySize / sectorSize);
  const lastSector = Math.floor(size / sectorSize) - 1;
  return {
    sectorSize,
    arraySectors,
    firstUsable: 2 + arraySectors,
    lastUsable: lastSector - 1 - arraySectors,
    lastSector,
  };
}

/** Returns a disk with a GPT: protective MBR, primary and backup. */
export function gptImage(parts: GptParts = {}): Uint8Array {
  const { size = 1 << 20, sectorSize = 512 } = parts;
  const { entryCount = 128, entrySize = 128 } = parts;
  const layout = gptLayout(parts);
  const { lastSector } = layout;
  const image = new Uint8Array(size);
  writeBootRecord(image, 0, [{ type: 0xee, start: 1, count: lastSector }]);
  const copies = [
    { sector: 1, other: lastSector, array: 2 },
    { sector: lastSector, other: 1, array: lastSector - layout.arraySectors },
  ];
  for (const { sector, other, array } of copies) {
    const header = headerOf(image, sectorSize, sector);
    image.set(encoder.encode("EFI PART"), sector * sectorSize);
    header.setUint32(8, 0x10000, true);
    header.setUint32(12, 92, true);
    header.setBigUint64(24, BigInt(sector), true);
    header.setBigUint64(32, BigInt(other), true);
    header.setBigUint64(40, BigInt(layout.firstUsable), true);
    header.setBigUint64(48, BigInt(layout.lastUsable), true);
    header.setBigUint64(72, BigInt(array), true);
    header.setUint32(80, entryCount, true);
    header.setUint32(84, entrySize, true);
    let next = 1;
    for (const partition of parts.partitions ?? []) {
      const number = partition.number ?? next;
      const at = array * sectorSize + (number - 1) * entrySize;
      writeEntry(viewOf(image, at), number, partition);
      next = number + 1;
    }
    seal(image, sectorSize, sector);
  }
  return image;
}

function writeEntry(
  view: DataView,
  number: number,
  partition: GptPartition,
): void {
  writeGuid(view, 0, partition.type ?? LINUX);
  writeGuid(view, 16, partition.uuid ?? uuidOf(number));
  view.setBigUint64(32, BigInt(partition.first), true);
  view.setBigUint64(40, BigInt(partition.last), true);
  const name = partition.name ?? "";
  const units = typeof name === "string"
    ? Array.from({ length: name.length }, (_, index) => name.charCodeAt(index))
    : name;
  for (const [index, unit] of units.entries()) {
    view.setUint16(56 + index * 2, unit, true);
  }
}

/** Returns the default GUID of a partition. */
export function uuidOf(number: number): string {
  return `00000000-0000-4000-8000-${
    number.toString(16).toUpperCase().padStart(12, "0")
  }`;
}

function writeGuid(view: DataView, offset: number, guid: string): void {
  const digits = guid.replaceAll("-", "");
  const order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
  for (const [index, from] of order.entries()) {
    const byte = parseInt(digits.slice(from * 2, from * 2 + 2), 16);
    view.setUint8(offset + index, byte);
  }
}

/** Returns a view of the header in a sector. */
export function headerOf(
  image: Uint8Array,
  sectorSize: number,
  sector: number,
): DataView {
  return viewOf(image, sector * sectorSize);
}

/**
 * Corrects the checksums of the copy whose header is in a sector, if that is possible.
 */
export function seal(
  image: Uint8Array,
  sectorSize: number,
  sector: number,
): void {
  const at = sector * sectorSize;
  const header = headerOf(image, sectorSize, sector);
  const array = Number(header.getBigUint64(72, true)) * sectorSize;
  const length = header.getUint32(80, true) * header.getUint32(84, true);
  if (array + length <= image.length) {
    header.setUint32(88, crc32(image.subarray(array, array + length)), true);
  }
  header.setUint32(16, 0, true);
  const size = Math.min(header.getUint32(12, true), sectorSize);
  header.setUint32(16, crc32(image.subarray(at, at + size)), true);
}

/** Changes both copies of a GPT on a disk of 1 MiB, and corrects their checksums. */
export function changeHeaders(
  image: Uint8Array,
  sectorSize: number,
  change: (header: DataView) => void,
): void {
  for (const sector of [1, Math.floor(image.length / sectorSize) - 1]) {
    change(headerOf(image, sectorSize, sector));
    seal(image, sectorSize, sector);
  }
}

/** Writes the start of a FAT file system, as mkfs.vfat does. */
export function writeFatBootSector(image: Uint8Array): void {
  const view = viewOf(image);
  image.set([0xeb, 0x3c, 0x90, ...encoder.encode("mkfs.fat")]);
  view.setUint16(11, 512, true);
  view.setUint8(13, 4);
  view.setUint16(14, 4, true);
  view.setUint8(16, 2);
  view.setUint16(17, 512, true);
  view.setUint8(21, 0xf8);
  image.set([0x55, 0xaa], 510);
}
