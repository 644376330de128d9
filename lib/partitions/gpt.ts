/** The GPT: a header with an array of entries behind the boot record, and a backup of both at the end. */
import { type ByteSource, readFully, viewOf } from "./byte_source.ts";
import { crc32 } from "./crc32.ts";
import { DamagedTable } from "./damaged_table.ts";
import { describe, describeDisk, type Disk, diskOf } from "./extent.ts";
import { hex } from "./hex.ts";
import {
  beyondMaximum,
  MAX_NUMBER,
  noteOverlaps,
  type TableEntries,
  type TableEntry,
} from "./table_entry.ts";

/** "EFI PART", as a number. */
const SIGNATURE = 0x5452415020494645n;
const MAJOR_REVISION = 1;
const MIN_HEADER_SIZE = 92;
const MIN_ENTRY_SIZE = 128;
/** As in the kernel: 32768 entries. No tool makes more, and a header with a valid checksum can ask for 2^64 bytes. */
const MAX_ARRAY_SIZE = 4 << 20;
/** Bytes of entries that one look reads: two copies of the largest table. Hostile headers for every sector size would ask for more. */
const MAX_READ = 2 * MAX_ARRAY_SIZE;
const PRIMARY_SECTOR = 1;

/** Where the fields of a header are. */
const HEADER = {
  signature: 0,
  revision: 8,
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

/** Where the fields of an entry are. */
const ENTRY = { type: 0, uuid: 16, first: 32, last: 40, name: 56 } as const;
const NAME_SIZE = 72;

/** One copy of the table, whose checksums are right. */
export interface Gpt {
  /** Bytes in a sector. */
  readonly sectorSize: number;
  /** The first sector that a partition may have. */
  readonly firstUsable: bigint;
  /** The last sector that a partition may have. */
  readonly lastUsable: bigint;
  /** Bytes in an entry. */
  readonly entrySize: number;
  /** The entries, one after the other. */
  readonly array: Uint8Array;
}

/** What there is to find on a disk with a protective MBR. */
export interface FoundGpts {
  /** A usable table for each sector size that has one. */
  readonly tables: readonly Gpt[];
  /** What is damaged, when there is none. */
  readonly damage: string;
}

/**
 * The tables on a disk, looked for at each of the sector sizes. The backups count
 * only when no primary is usable: they may be left from an earlier table.
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
      "the protective MBR announces a GPT, but there is no header of one behind it or at the end of the disk",
  };
}

/** Reads the entries of all copies that one look considers, up to a limit. */
class EntryReader {
  readonly #source: ByteSource;
  #left = MAX_READ;

  constructor(source: ByteSource) {
    this.#source = source;
  }

  /** The bytes, or why there are none. */
  read(offset: number, length: number): Uint8Array | string {
    if (length > this.#left) return "is one of too many with large tables";
    const bytes = readFully(this.#source, offset, length);
    if (bytes === undefined) return "has its entries outside the disk";
    this.#left -= length;
    return bytes;
  }
}

/** A copy that cannot be used. */
interface Unusable {
  /** Why: `header at byte 512 does not match its checksum`. */
  readonly fault: string;
  /** Whether it is a header at all. */
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

/** The backup whose header is in the last sector, or where the primary header says. */
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
  // A backup has a checksum of its own, so the primary may point to it even when it is damaged itself.
  const sector = viewOf(header).getBigUint64(HEADER.otherSector, true);
  if (sector <= PRIMARY_SECTOR || sector >= sectors - 1) return last;
  const other = readCopy(source, entries, sectorSize, Number(sector));
  return isUsable(other) || !last.hasSignature ? other : last;
}

function hasSignature(header: Uint8Array): boolean {
  return viewOf(header).getBigUint64(HEADER.signature, true) === SIGNATURE;
}

/** The copy whose header is in the given sector. */
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

/** What is wrong with a header that has the signature, if anything is. */
function headerFault(bytes: Uint8Array, sector: number): string | undefined {
  const view = viewOf(bytes);
  const size = view.getUint32(HEADER.size, true);
  if (size < MIN_HEADER_SIZE || size > bytes.length) {
    return `says that it has ${size} bytes`;
  }
  const summed = bytes.slice(0, size);
  summed.fill(0, HEADER.checksum, HEADER.checksum + 4);
  if (crc32(summed) !== view.getUint32(HEADER.checksum, true)) {
    return "does not match its checksum";
  }
  const revision = view.getUint32(HEADER.revision, true);
  if (revision >>> 16 !== MAJOR_REVISION) {
    return `has the unknown revision 0x${revision.toString(16)}`;
  }
  const own = view.getBigUint64(HEADER.sector, true);
  if (own !== BigInt(sector)) {
    return `is in sector ${sector}, and says it is in sector ${own}`;
  }
  const firstUsable = view.getBigUint64(HEADER.firstUsable, true);
  const lastUsable = view.getBigUint64(HEADER.lastUsable, true);
  if (firstUsable <= PRIMARY_SECTOR || lastUsable < firstUsable) {
    return `says that the usable sectors are ${firstUsable} to ${lastUsable}`;
  }
  const entrySize = view.getUint32(HEADER.entrySize, true);
  const isPowerOfTwo = (entrySize & (entrySize - 1)) === 0;
  if (entrySize < MIN_ENTRY_SIZE || !isPowerOfTwo) {
    return `says that an entry has ${entrySize} bytes`;
  }
  const count = view.getUint32(HEADER.entryCount, true);
  if (count === 0 || count * entrySize > MAX_ARRAY_SIZE) {
    return `says that there are ${count} entries of ${entrySize} bytes`;
  }
  return undefined;
}

/**
 * The partitions in a table. As in the kernel an entry that is not wholly on the disk is
 * none, and one outside the usable sectors is.
 *
 * @throws {DamagedTable} when the usable sectors are not on the disk: no kernel takes that table
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

/** Why no kernel shows an entry; `undefined` when they do. */
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

/** An entry of which both ends are on the disk. */
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

// A name may begin with a byte order mark like any other character.
const decoder = new TextDecoder("utf-16le", { ignoreBOM: true });

/** The name of an entry, up to the first NUL; half a surrogate pair becomes U+FFFD. */
function readName(entry: DataView): string {
  const bytes = new Uint8Array(
    entry.buffer,
    entry.byteOffset + ENTRY.name,
    NAME_SIZE,
  );
  return decoder.decode(bytes).split("\0", 1)[0]!;
}

/** A GUID: its first three numbers are little-endian. */
function readGuid(view: DataView, offset: number): string {
  return [
    hex(view.getUint32(offset, true), 8),
    hex(view.getUint16(offset + 4, true), 4),
    hex(view.getUint16(offset + 6, true), 4),
    hex(view.getUint16(offset + 8), 4),
    hex(view.getUint16(offset + 10), 4) + hex(view.getUint32(offset + 12), 8),
  ].join("-").toUpperCase();
}
