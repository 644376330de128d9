/**
 * Reads the GPT: a header and an array of entries after the boot record, and a backup
 * of both at the end.
 */
import { type ByteSource, readFully, viewOf } from "./byte_source.ts";
import { describe, describeDisk, type Disk, diskOf } from "./extent.ts";
import {
  beyondMaximum,
  DamagedTable,
  hex,
  MAX_NUMBER,
  noteOverlaps,
  type TableEntries,
  type TableEntry,
} from "./table_entry.ts";

/** "EFI PART", as a number. */
const SIGNATURE = 0x5452415020494645n;
const MIN_HEADER_SIZE = 92;
const MIN_ENTRY_SIZE = 128;
/**
 * Limit of the kernel: 32768 entries. No tool makes more, but a header with a valid
 * checksum can ask for 2^64 bytes.
 */
const MAX_ARRAY_SIZE = 4 << 20;
/**
 * Limit for all entries read in one call: two copies of the largest table. Hostile
 * headers for every sector size would ask for more.
 */
const MAX_READ = 2 * MAX_ARRAY_SIZE;
const PRIMARY_SECTOR = 1;

/** Offsets of the fields of a header. */
const HEADER = {
  signature: 0,
  size: 12,
  checksum: 16,
  sector: 24,
  otherSector: 32,
  firstUsable: 40,
  lastUsable: 48,
  arraySector: 72,
  entryCount: 80,
  entrySize: 84,
  arrayChecksum: 88,
} as const;

/** Offsets of the fields of an entry. */
const ENTRY = { type: 0, uuid: 16, first: 32, last: 40, name: 56 } as const;
const NAME_SIZE = 72;

/** A copy of the table with correct checksums. */
export interface Gpt {
  /** Size of a sector in bytes. */
  readonly sectorSize: number;
  /** First sector that a partition may use. */
  readonly firstUsable: bigint;
  /** Last sector that a partition may use. */
  readonly lastUsable: bigint;
  /** Size of an entry in bytes. */
  readonly entrySize: number;
  /** All entries in sequence. */
  readonly array: Uint8Array;
}

/** Tables found on a disk with a protective MBR. */
export interface FoundGpts {
  /** The usable table for each sector size that has one. */
  readonly tables: readonly Gpt[];
  /** Description of the damage, if there is no usable table. */
  readonly damage: string;
}

/**
 * Finds the tables on a disk, for each of the sector sizes. Backups are used only if no
 * primary is usable, because they may be left over from an earlier table.
 */
export function findGpts(
  source: ByteSource,
  sectorSizes: readonly number[],
): FoundGpts {
  const entries = new EntryReader(source);
  const primaries = sectorSizes.map((sectorSize) =>
    readCopy(source, entries, sectorSize, PRIMARY_SECTOR)
  );
  const tables = primaries.filter(isUsable);
  if (tables.length > 0) return { tables, damage: "" };

  const backups = sectorSizes.map((sectorSize) =>
    readBackup(source, entries, sectorSize)
  );
  const damage = sectorSizes.map((_, index) =>
    describeDamage(primaries[index]!, backups[index]!)
  );
  return {
    tables: backups.filter(isUsable),
    damage: damage.filter((text) => text !== "").join("; ") ||
      "the protective MBR announces a GPT, but no header follows it or is at the end of the disk",
  };
}

/** Reads the entries of all candidate copies, up to a total limit. */
class EntryReader {
  readonly #source: ByteSource;
  #left = MAX_READ;

  constructor(source: ByteSource) {
    this.#source = source;
  }

  /** Returns the bytes, or the reason why they cannot be read. */
  read(offset: number, length: number): Uint8Array | string {
    if (length > this.#left) {
      return "exceeds the limit for the size of all tables";
    }
    const bytes = readFully(this.#source, offset, length);
    if (bytes === undefined) return "has entries outside the disk";
    this.#left -= length;
    return bytes;
  }
}

/** A copy that cannot be used. */
interface Unusable {
  /** Fault of the copy: `header at byte 512 does not match its checksum`. */
  readonly fault: string;
  /** `true` if it has the signature of a header. */
  readonly hasSignature: boolean;
}

function isUsable(copy: Gpt | Unusable): copy is Gpt {
  return "array" in copy;
}

function describeDamage(
  primary: Gpt | Unusable,
  backup: Gpt | Unusable,
): string {
  if (isUsable(primary) || isUsable(backup)) return "";
  if (!primary.hasSignature && !backup.hasSignature) return "";
  return `the primary GPT ${primary.fault}, and the backup ${backup.fault}`;
}

/**
 * Reads the backup whose header is in the last sector, or where the primary header
 * points.
 */
function readBackup(
  source: ByteSource,
  entries: EntryReader,
  sectorSize: number,
): Gpt | Unusable {
  const { sectors } = diskOf(source.size, sectorSize);
  const last = readCopy(source, entries, sectorSize, sectors - 1);
  const header = readFully(source, PRIMARY_SECTOR * sectorSize, sectorSize);
  if (isUsable(last) || header === undefined || !hasSignature(header)) {
    return last;
  }
  // The backup has its own checksum, so even a damaged primary header may point to it.
  const sector = viewOf(header).getBigUint64(HEADER.otherSector, true);
  if (sector <= PRIMARY_SECTOR || sector >= sectors - 1) return last;
  const other = readCopy(source, entries, sectorSize, Number(sector));
  return isUsable(other) || !last.hasSignature ? other : last;
}

function hasSignature(header: Uint8Array): boolean {
  return viewOf(header).getBigUint64(HEADER.signature, true) === SIGNATURE;
}

/** Reads the copy whose header is in the given sector. */
function readCopy(
  source: ByteSource,
  entries: EntryReader,
  sectorSize: number,
  sector: number,
): Gpt | Unusable {
  const at = `header at byte ${sector * sectorSize}`;
  const header = readFully(source, sector * sectorSize, sectorSize);
  if (header === undefined) {
    return { fault: `${at} lies outside the disk`, hasSignature: false };
  }
  if (!hasSignature(header)) {
    return { fault: `${at} has no signature`, hasSignature: false };
  }
  const fault = headerFault(header, sector);
  if (fault !== undefined) {
    return { fault: `${at} ${fault}`, hasSignature: true };
  }
  const view = viewOf(header);
  const entrySize = view.getUint32(HEADER.entrySize, true);
  const array = entries.read(
    Number(view.getBigUint64(HEADER.arraySector, true)) * sectorSize,
    view.getUint32(HEADER.entryCount, true) * entrySize,
  );
  if (typeof array === "string") {
    return { fault: `${at} ${array}`, hasSignature: true };
  }
  if (crc32(array) !== view.getUint32(HEADER.arrayChecksum, true)) {
    return {
      fault: `${at} has entries that do not match their checksum`,
      hasSignature: true,
    };
  }
  return {
    sectorSize,
    firstUsable: view.getBigUint64(HEADER.firstUsable, true),
    lastUsable: view.getBigUint64(HEADER.lastUsable, true),
    entrySize,
    array,
  };
}

/**
 * Returns the fault of a header that has the signature, if any. Like the kernel, does
 * not check the revision, and accepts usable sectors that include the header.
 */
function headerFault(bytes: Uint8Array, sector: number): string | undefined {
  const view = viewOf(bytes);
  const size = view.getUint32(HEADER.size, true);
  if (size < MIN_HEADER_SIZE || size > bytes.length) {
    return `claims a size of ${size} bytes`;
  }
  const summed = bytes.slice(0, size);
  summed.fill(0, HEADER.checksum, HEADER.checksum + 4);
  if (crc32(summed) !== view.getUint32(HEADER.checksum, true)) {
    return "does not match its checksum";
  }
  const own = view.getBigUint64(HEADER.sector, true);
  if (own !== BigInt(sector)) {
    return `is in sector ${sector}, but claims to be in sector ${own}`;
  }
  const firstUsable = view.getBigUint64(HEADER.firstUsable, true);
  const lastUsable = view.getBigUint64(HEADER.lastUsable, true);
  if (lastUsable < firstUsable) {
    return `claims that sectors ${firstUsable} to ${lastUsable} are usable`;
  }
  const entrySize = view.getUint32(HEADER.entrySize, true);
  const isPowerOfTwo = (entrySize & (entrySize - 1)) === 0;
  if (entrySize < MIN_ENTRY_SIZE || !isPowerOfTwo) {
    return `claims ${entrySize} bytes for an entry`;
  }
  const count = view.getUint32(HEADER.entryCount, true);
  if (count === 0 || count * entrySize > MAX_ARRAY_SIZE) {
    return `claims ${count} entries of ${entrySize} bytes`;
  }
  return undefined;
}

/**
 * Reads the partitions in a table. As in the kernel, an entry that is not entirely on
 * the disk is ignored, but one outside the usable sectors is not.
 *
 * @throws {DamagedTable} If the usable sectors are not on the disk; no kernel accepts
 * such a table.
 */
export function readEntries(gpt: Gpt, diskSize: number): TableEntries {
  const { sectorSize, entrySize, array } = gpt;
  const disk = diskOf(diskSize, sectorSize);
  if (gpt.lastUsable >= disk.sectors) {
    throw new DamagedTable(
      `the GPT is for a larger disk: its last usable sector, ${gpt.lastUsable}, lies outside ${
        describeDisk(disk)
      }`,
    );
  }
  const partitions: TableEntry[] = [];
  const unusable: string[] = [];
  for (let at = 0; at < array.length; at += entrySize) {
    const entry = viewOf(array.subarray(at, at + entrySize));
    if (isUnused(entry)) continue;
    const number = at / entrySize + 1;
    const fault = faultOf(entry, number, disk);
    if (fault === undefined) partitions.push(readEntry(entry, number, gpt));
    else unusable.push(fault);
  }
  noteOverlaps(partitions, sectorSize);
  return { partitions, unusable };
}

function isUnused(entry: DataView): boolean {
  return entry.getBigUint64(ENTRY.type) === 0n &&
    entry.getBigUint64(ENTRY.type + 8) === 0n;
}

/** Returns the reason why no kernel shows an entry, or `undefined` if kernels do. */
function faultOf(
  entry: DataView,
  number: number,
  disk: Disk,
): string | undefined {
  if (number > MAX_NUMBER) return beyondMaximum(number);
  const first = entry.getBigUint64(ENTRY.first, true);
  const last = entry.getBigUint64(ENTRY.last, true);
  const described = describe(`partition ${number}`, first, last);
  if (last < first) return `${described} ends before it begins`;
  if (last < disk.sectors) return undefined;
  return `${described} lies outside ${describeDisk(disk)}`;
}

/** Reads an entry that lies entirely on the disk. */
function readEntry(entry: DataView, number: number, gpt: Gpt): TableEntry {
  const { sectorSize, firstUsable, lastUsable } = gpt;
  const first = entry.getBigUint64(ENTRY.first, true);
  const last = entry.getBigUint64(ENTRY.last, true);
  const name = readName(entry);
  const isUsual = first >= firstUsable && last <= lastUsable;
  return {
    number,
    start: Number(first) * sectorSize,
    size: (Number(last - first) + 1) * sectorSize,
    type: readGuid(entry, ENTRY.type),
    ...(name !== "" && { name }),
    uuid: readGuid(entry, ENTRY.uuid),
    ...(!isUsual && {
      problem:
        `lies outside the usable sectors, ${firstUsable} to ${lastUsable}`,
    }),
  };
}

// A byte order mark at the start of a name is part of the name.
const decoder = new TextDecoder("utf-16le", { ignoreBOM: true });

/**
 * Returns the name of an entry, up to the first NUL. Unpaired surrogates become U+FFFD.
 */
function readName(entry: DataView): string {
  const bytes = new Uint8Array(
    entry.buffer,
    entry.byteOffset + ENTRY.name,
    NAME_SIZE,
  );
  return decoder.decode(bytes).split("\0", 1)[0]!;
}

/** Reads a GUID, whose first three numbers are little-endian. */
function readGuid(view: DataView, offset: number): string {
  return [
    hex(view.getUint32(offset, true), 8),
    hex(view.getUint16(offset + 4, true), 4),
    hex(view.getUint16(offset + 6, true), 4),
    hex(view.getUint16(offset + 8), 4),
    hex(view.getUint16(offset + 10), 4) + hex(view.getUint32(offset + 12), 8),
  ].join("-").toUpperCase();
}

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
