/**
 * Reads sector 0: the boot record shared by MBRs, protective MBRs and some file
 * systems.
 */
import { type ByteSource, readFully, viewOf } from "./byte_source.ts";

const SIZE = 512;
const DISK_ID = 440;
const SLOTS = 446;
const SLOT_SIZE = 16;
const SIGNATURE = 510;

/** One of the four slots of a boot record. Offsets and sizes are in sectors. */
export interface Slot {
  /** 0x80 for the partition a PC boots from, otherwise 0. */
  readonly bootFlag: number;
  /** The type of the partition; 0 in an unused slot. */
  readonly type: number;
  /** The first sector, relative to a position that depends on the record. */
  readonly start: number;
  /** The number of sectors; 0 in an unused slot. */
  readonly count: number;
}

/** A boot record, as slots and as bytes. */
export interface BootRecord {
  /** The four slots. */
  readonly slots: readonly Slot[];
  /** A number that identifies the disk; 0 if none was set. */
  readonly diskId: number;
  /** All of its 512 bytes. */
  readonly bytes: Uint8Array;
}

/**
 * Reads the boot record at a byte offset. Returns `undefined` if its signature, 0x55
 * 0xAA, is missing.
 */
export function readBootRecord(
  source: ByteSource,
  offset: number,
): BootRecord | undefined {
  const bytes = readFully(source, offset, SIZE);
  if (bytes === undefined) return undefined;
  if (bytes[SIGNATURE] !== 0x55 || bytes[SIGNATURE + 1] !== 0xaa) {
    return undefined;
  }
  const view = viewOf(bytes);
  const slots = [0, 1, 2, 3].map((index): Slot => {
    const at = SLOTS + index * SLOT_SIZE;
    return {
      bootFlag: view.getUint8(at),
      type: view.getUint8(at + 4),
      start: view.getUint32(at + 8, true),
      count: view.getUint32(at + 12, true),
    };
  });
  return { slots, diskId: view.getUint32(DISK_ID, true), bytes };
}

/** Slot type by which an MBR declares that the disk has a GPT. */
const GPT_PROTECTIVE = 0xee;

/**
 * Returns `true` if the disk has a GPT, whatever else the record lists (a hybrid MBR).
 */
export function isProtective({ slots }: BootRecord): boolean {
  return slots.some(({ type }) => type === GPT_PROTECTIVE);
}

const FAT_SECTOR_SIZES = [512, 1024, 2048, 4096];
/** Names that non-FAT file systems store where a FAT stores the maker's name. */
const NAMES = ["NTFS    ", "EXFAT   ", "-FVE-FS-"];

const decoder = new TextDecoder();

/**
 * Returns `true` if the record starts like the boot sector of a FAT, NTFS, exFAT or
 * BitLocker file system. These have the signature of an MBR.
 */
export function isFileSystem({ bytes }: BootRecord): boolean {
  if (NAMES.includes(decoder.decode(bytes.subarray(3, 11)))) return true;
  const view = viewOf(bytes);
  const sectorSize = view.getUint16(11, true);
  const clusterSectors = view.getUint8(13);
  const reservedSectors = view.getUint16(14, true);
  const fats = view.getUint8(16);
  const medium = view.getUint8(21);
  return FAT_SECTOR_SIZES.includes(sectorSize) && clusterSectors > 0 &&
    (clusterSectors & (clusterSectors - 1)) === 0 && reservedSectors > 0 &&
    fats > 0 && (medium === 0xf0 || medium >= 0xf8);
}
