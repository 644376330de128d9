/**
 * Reads the MBR: four primary partitions, and logical ones in a chain of extended boot
 * records.
 */
import {
  type BootRecord,
  isFileSystem,
  readBootRecord,
  type Slot,
} from "./boot_record.ts";
import { type ByteSource, readFully } from "./byte_source.ts";
import {
  countOn,
  describeDisk,
  describeExtent,
  type Disk,
  diskOf,
  type Extent,
} from "./extent.ts";
import {
  addProblem,
  beyondMaximum,
  FIRST_LOGICAL,
  hex,
  MAX_NUMBER,
  noteOverlaps,
  type TableEntries,
  type TableEntry,
} from "./table_entry.ts";

/** Types of extended partitions: of DOS, Windows and Linux. */
const EXTENDED = [0x05, 0x0f, 0x85];
const DYNAMIC_DISK = 0x42;
/** Offset of the database of a dynamic disk, in bytes. */
const LDM_HEADER = 6 * 512;
const LDM_SIGNATURE = "PRIVHEAD";
const latin1 = new TextDecoder("latin1");
/** Limit of the kernel: deleted partitions leave empty records in the chain. */
const MAX_EMPTY_RECORDS = 100;
/**
 * Limit for the records with partitions in the chains of all extended ones, and for those
 * without. Linux shows 251 logical partitions, and each record may be in a block of its
 * own that stays in memory.
 */
const MAX_RECORDS = 256;

/** A partition in the table, in sectors from the start of the disk. */
interface Partition extends Extent {
  readonly number: number;
  readonly type: number;
  /** Fault in the chain of an extended partition. */
  readonly problem?: string | undefined;
}

/**
 * Reads the partitions of an MBR as the kernel shows them, including those that have
 * type 0, overlap, or are cut off at the end of the disk.
 *
 * @returns The partitions, or `undefined` if the record belongs to a file system, boot
 * code, or a table that only the kernel reads.
 */
export function readMbr(
  source: ByteSource,
  record: BootRecord,
  sectorSize: number,
): TableEntries | undefined {
  if (record.slots.some(({ bootFlag }) => (bootFlag & 0x7f) !== 0)) {
    return undefined;
  }
  const disk = diskOf(source.size, sectorSize);
  const primaries = readPrimaries(record);
  if (isDynamicDisk(source, primaries)) return undefined;
  // Tools that write a table over a file system leave its first bytes in place.
  if (isFileSystem(record) && !arePlausible(primaries, disk)) return undefined;

  const all: Partition[] = [];
  const logicals: Partition[] = [];
  const budget: Budget = { filled: MAX_RECORDS, empty: MAX_RECORDS };
  for (const primary of primaries) {
    if (!isExtended(primary)) {
      all.push(primary);
      continue;
    }
    const firstNumber = FIRST_LOGICAL + logicals.length;
    const chain = readChain(source, primary, firstNumber, disk, budget);
    logicals.push(...chain.partitions);
    all.push({ ...primary, problem: chain.problem });
  }
  all.push(...logicals);

  const isThere = (partition: Partition) => countOn(disk, partition) > 0;
  const partitions = all.filter(isThere)
    .map((partition) => entryOf(partition, record.diskId, disk));
  noteOverlaps(partitions, sectorSize);
  const unusable = all.filter((partition) => !isThere(partition))
    .map((partition) =>
      `${describeExtent(partition)} lies outside ${describeDisk(disk)}`
    );
  return { partitions, unusable };
}

/**
 * Returns `true` for a dynamic disk of Windows (LDM), of which the kernel shows the
 * volumes in its database instead.
 */
function isDynamicDisk(source: ByteSource, primaries: Partition[]): boolean {
  if (!primaries.some(({ type }) => type === DYNAMIC_DISK)) return false;
  const header = readFully(source, LDM_HEADER, LDM_SIGNATURE.length);
  return header !== undefined && latin1.decode(header) === LDM_SIGNATURE;
}

function readPrimaries({ slots }: BootRecord): Partition[] {
  return slots
    .map(({ type, start, count }, index) =>
      partitionOf(index + 1, type, start, count)
    )
    .filter(({ count }) => count > 0);
}

function partitionOf(
  number: number,
  type: number,
  start: number,
  count: number,
): Partition {
  return { number, type, start, count, what: `partition ${number}` };
}

function entryOf(
  partition: Partition,
  diskId: number,
  disk: Disk,
): TableEntry {
  const { number, type, start, count, problem } = partition;
  const shown = countOn(disk, partition);
  const entry: TableEntry = {
    number,
    start: start * disk.sectorSize,
    size: shown * disk.sectorSize,
    type: `0x${type.toString(16)}`,
    ...(diskId !== 0 && { uuid: `${hex(diskId, 8)}-${hex(number, 2)}` }),
    ...(isExtended(partition) && { isContainer: true }),
  };
  if (shown < count) {
    addProblem(
      entry,
      `cut off at the end of the disk: according to the table it ends in sector ${
        start + count - 1
      }`,
    );
  }
  if (problem !== undefined) addProblem(entry, problem);
  return entry;
}

function isExtended({ type }: { readonly type: number }): boolean {
  return EXTENDED.includes(type);
}

function isWithin(inner: Extent, outer: Extent): boolean {
  return inner.start >= outer.start &&
    inner.start + inner.count <= outer.start + outer.count;
}

/**
 * Returns `true` if partitions start after the table. A file system fills the whole
 * disk instead.
 */
function arePlausible(partitions: Partition[], disk: Disk): boolean {
  return partitions.length > 0 &&
    partitions.every((partition) =>
      partition.type !== 0 && partition.start > 0 &&
      countOn(disk, partition) === partition.count
    );
}

/** The logical partitions in an extended one. */
interface Chain {
  /** The partitions in the order of the chain. */
  readonly partitions: Partition[];
  /** The first fault of the chain. Partitions before it are usable. */
  readonly problem: string | undefined;
}

/** Numbers of records that may still be read: with partitions, and without. */
interface Budget {
  filled: number;
  empty: number;
}

/**
 * Follows the extended boot records as far as they lead, as the kernel does, and takes
 * them off the budget for the table.
 */
function readChain(
  source: ByteSource,
  container: Partition,
  firstNumber: number,
  disk: Disk,
  budget: Budget,
): Chain {
  const partitions: Partition[] = [];
  const seen = new Set<number>();
  let problem: string | undefined;
  let emptyRecords = 0;
  let here: Extent = { ...container, what: "the extended boot record" };
  for (;;) {
    const end = (fault: string): Chain => ({
      partitions,
      problem: problem ?? `its chain of logical partitions ends: ${fault}`,
    });
    const place = describeExtent({ ...here, count: 1 });
    if (seen.has(here.start)) return end(`${place} occurs twice`);
    const isOver = budget.filled === 0 || budget.empty === 0 ||
      emptyRecords === MAX_EMPTY_RECORDS;
    if (isOver) return end(`${place} exceeds the limit`);
    seen.add(here.start);
    const record = readBootRecord(source, here.start * disk.sectorSize);
    if (record === undefined) {
      const isThere = here.start < disk.sectors;
      return end(
        `${place} ${isThere ? "has no signature" : "lies outside the disk"}`,
      );
    }
    if (!isWithin({ ...here, count: 1 }, container)) {
      problem ??= `${place} lies outside it`;
    }
    const slots = dataSlots(record, here, container);
    for (const slot of slots) {
      const number = firstNumber + partitions.length;
      if (number > MAX_NUMBER) return end(beyondMaximum(number));
      const start = here.start + slot.start;
      const partition = partitionOf(number, slot.type, start, slot.count);
      if (!isWithin(partition, container)) {
        problem ??= `${describeExtent(partition)} lies outside it`;
      }
      partitions.push(partition);
    }
    const isEmpty = slots.length === 0;
    budget[isEmpty ? "empty" : "filled"]--;
    emptyRecords = isEmpty ? emptyRecords + 1 : 0;
    const [next, second] = record.slots
      .filter((slot) => slot.count > 0 && isExtended(slot));
    if (second !== undefined) {
      problem ??= `${place} has two links, of which the first is followed`;
    }
    if (next === undefined) return { partitions, problem };
    const start = container.start + next.start;
    here = { ...here, start, count: next.count };
  }
}

/** Returns the partitions of an extended boot record: usually one, in the first slot. */
function dataSlots(
  record: BootRecord,
  here: Extent,
  container: Extent,
): Slot[] {
  return record.slots.filter((slot, index) => {
    if (slot.count === 0 || isExtended(slot)) return false;
    if (index < 2) return true;
    // Some systems use the other two slots, and some leave garbage in them.
    const start = here.start + slot.start;
    return slot.start + slot.count <= here.count &&
      isWithin({ what: "", start, count: slot.count }, container);
  });
}
