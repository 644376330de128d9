/** A partition as its table describes it. Plain data. */
export interface TableEntry {
  /**
   * The number of the partition, starting at 1; logical partitions of an MBR start at
   * 5.
   */
  number: number;
  /** The offset on the disk at which it starts, in bytes. */
  start: number;
  /** Its size in bytes, up to the end of the disk. */
  size: number;
  /** GPT: the type GUID in upper case, as sfdisk prints it. MBR: `"0x83"`, `"0xc"`. */
  type: string;
  /** GPT: the name, if it is not empty. */
  name?: string;
  /**
   * GPT: the GUID of the partition, in upper case. MBR: the disk ID and the number,
   * `"1234abcd-01"`, unless the disk has no ID.
   */
  uuid?: string;
  /** Anything odd about it, in one line. */
  problem?: string;
  /**
   * Set for the extended partition of an MBR, which contains the logical ones. The size
   * is its full size; Linux shows only its first sectors as a device.
   */
  isContainer?: true;
}

/** The entries of a table. */
export interface TableEntries {
  /** The partitions, by number. */
  partitions: TableEntry[];
  /** Faults of entries that no kernel shows, one line each. */
  unusable: string[];
}

/** The highest partition number: Linux has no more minor numbers. */
export const MAX_NUMBER = 255;

/** Describes the fault of a partition with a higher number. */
export function beyondMaximum(number: number): string {
  return `partition ${number} cannot be shown: the highest number in Linux is ${MAX_NUMBER}`;
}

/** The first number of a logical partition. */
export const FIRST_LOGICAL = 5;

/**
 * Size that Linux shows of an extended partition: two sectors, enough for a boot
 * loader.
 */
const CONTAINER_SIZE = 1024;

/** Returns the start and size of the device of a partition, in bytes. */
export function shownExtent(
  { start, size, isContainer }: TableEntry,
  sectorSize: number,
): { start: number; size: number } {
  if (!isContainer) return { start, size };
  return { start, size: Math.min(size, Math.max(CONTAINER_SIZE, sectorSize)) };
}

/** Adds a problem to an entry. */
export function addProblem(entry: TableEntry, problem: string): void {
  entry.problem = entry.problem === undefined
    ? problem
    : `${entry.problem}; ${problem}`;
}

/**
 * Adds a problem to each entry that overlaps others. The kernel's parsers show these
 * too.
 */
export function noteOverlaps(
  entries: readonly TableEntry[],
  sectorSize: number,
): void {
  for (const entry of entries) {
    const [first, ...more] = entries.filter((other) =>
      other !== entry && doOverlap(entry, other, sectorSize)
    );
    if (first === undefined) continue;
    const others = more.length === 0 ? "" : ` and ${more.length} more`;
    addProblem(entry, `overlaps partition ${first.number}${others}`);
  }
}

/**
 * Returns `true` if two entries overlap. Logical partitions lie inside an extended one,
 * after its first record.
 */
function doOverlap(a: TableEntry, b: TableEntry, sectorSize: number): boolean {
  const end = (entry: TableEntry, other: TableEntry): number =>
    entry.start +
    (entry.isContainer && other.number >= FIRST_LOGICAL
      ? sectorSize
      : entry.size);
  return a.start < end(b, a) && b.start < end(a, b);
}

/** Formats a number in lowercase hexadecimal, padded with zeros. */
export function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}

/**
 * Error thrown when a partition table contradicts itself or the disk.
 *
 * The message describes the damage so that it can follow a colon:
 * `primary GPT header at byte 512 does not match its checksum`.
 */
export class DamagedTable extends Error {
  /** The name of the class. */
  override readonly name: string = "DamagedTable";
}

/** MBR types of partitions with a table of their own: Unixware, Minix, Solaris (old and new), FreeBSD, OpenBSD, NetBSD. */
const SLICED = ["0x63", "0x81", "0x82", "0xbf", "0xa5", "0xa6", "0xa9"];

/**
 * Returns `true` if a partition that only the kernel has may be a slice of a primary one
 * in the MBR.
 *
 * @param entries The entries that the kernel shows, with the sizes that it shows. It
 * finds slices only in these; 0x82 is also Linux swap, which has none.
 */
export function isSlice(
  partition: { number: number; start: number; size: number },
  entries: readonly TableEntry[],
): boolean {
  return partition.number >= FIRST_LOGICAL &&
    entries.some(({ number, type, start, size }) =>
      number < FIRST_LOGICAL && SLICED.includes(type) &&
      partition.start >= start &&
      partition.start + partition.size <= start + size
    );
}
