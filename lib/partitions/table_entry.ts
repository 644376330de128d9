/** What a partition table says of a partition. Plain data. */
export interface TableEntry {
  /** The number of the partition, from 1 on; logical partitions of an MBR from 5 on. */
  number: number;
  /** Where it begins on the disk, in bytes. */
  start: number;
  /** Its size in bytes, as far as it is on the disk. */
  size: number;
  /** GPT: the type GUID in upper case, as sfdisk prints it. MBR: `"0x83"`, `"0xc"`. */
  type: string;
  /** GPT: the name, unless it is empty. */
  name?: string;
  /** GPT: the GUID of the partition, in upper case. MBR: disk id and number, `"1234abcd-01"`, unless the disk has no id. */
  uuid?: string;
  /** What is odd about it, in one line. */
  problem?: string;
  /**
   * Set for the extended partition of an MBR, of which the logical ones are parts.
   * The size is its full size; Linux shows only its first sectors as a device.
   */
  isContainer?: true;
}

/** The entries of a table. */
export interface TableEntries {
  /** The partitions, by number. */
  partitions: TableEntry[];
  /** What is wrong with those that no kernel shows, one line each. */
  unusable: string[];
}

/** The highest number of a partition: Linux has minor numbers for no more. */
export const MAX_NUMBER = 255;

/** What is wrong with a partition of a higher number. */
export function beyondMaximum(number: number): string {
  return `partition ${number} cannot be shown: the highest number in Linux is ${MAX_NUMBER}`;
}

/** The first number of a logical partition. */
export const FIRST_LOGICAL = 5;

/** Linux shows two sectors of an extended partition, enough for a boot loader. */
const CONTAINER_SIZE = 1024;

/** Where the device of a partition begins, and its size in bytes. */
export function shownExtent(
  { start, size, isContainer }: TableEntry,
  sectorSize: number,
): { start: number; size: number } {
  if (!isContainer) return { start, size };
  return { start, size: Math.min(size, Math.max(CONTAINER_SIZE, sectorSize)) };
}

/** Adds to what is odd about an entry. */
export function addProblem(entry: TableEntry, problem: string): void {
  entry.problem = entry.problem === undefined
    ? problem
    : `${entry.problem}; ${problem}`;
}

/** Says of each entry which others it overlaps. The kernel's parsers show these too. */
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

/** Logical partitions lie in an extended one, behind its first record. */
function doOverlap(a: TableEntry, b: TableEntry, sectorSize: number): boolean {
  const end = (entry: TableEntry, other: TableEntry): number =>
    entry.start +
    (entry.isContainer && other.number >= FIRST_LOGICAL
      ? sectorSize
      : entry.size);
  return a.start < end(b, a) && b.start < end(a, b);
}
