/** The MBR: four primary partitions, and logical ones in a chain of extended boot records. */
import {
  type BootRecord,
  isFileSystem,
  readBootRecord,
  type Slot,
} from "./boot_record.ts";
import type { ByteSource } from "./byte_source.ts";
import { DamagedTable } from "./damaged_table.ts";
import {
  describeDisk,
  describeExtent,
  type Disk,
  diskOf,
  type Extent,
  refuseOverlaps,
} from "./extent.ts";
import { hex } from "./hex.ts";
import { beyondMaximum, MAX_NUMBER, type TableEntry } from "./table_entry.ts";

/** The types of extended partitions: of DOS, of Windows, of Linux. */
const EXTENDED = [0x05, 0x0f, 0x85];
const FIRST_LOGICAL = 5;
/** Deleted partitions may leave records in the chain, but not without end. */
const MAX_RECORDS = 1024;

/** A partition, in sectors from the beginning of the disk. */
interface Partition extends Extent {
  readonly number: number;
  readonly type: number;
}

/**
 * The partitions of an MBR whose boot record was read.
 *
 * @returns `undefined` when the record is not one of a partition table, but of a file system or of boot code
 * @throws {DamagedTable} when partitions overlap or lie outside the disk, or the chain of logical ones is broken
 */
export function readMbr(
  source: ByteSource,
  record: BootRecord,
  sectorSize: number,
): TableEntry[] | undefined {
  if (record.slots.some(({ bootFlag }) => (bootFlag & 0x7f) !== 0)) {
    return undefined;
  }
  const disk = diskOf(source.size, sectorSize);
  const primaries = readPrimaries(record);
  // Tools that write a table over a file system leave its first bytes in place.
  if (isFileSystem(record) && !arePlausible(primaries, disk)) return undefined;
  for (const partition of primaries) {
    if (!isInside(partition, disk)) {
      throw new DamagedTable(
        `${describeExtent(partition)} lies outside ${describeDisk(disk)}`,
      );
    }
  }
  refuseOverlaps(primaries);
  const logicals: Partition[] = [];
  for (const container of primaries.filter(isExtended)) {
    const firstNumber = FIRST_LOGICAL + logicals.length;
    logicals.push(...readLogicals(source, container, firstNumber, disk));
  }
  return [...primaries, ...logicals]
    .filter(({ type }) => type !== 0)
    .map((partition) => entryOf(partition, record.diskId, sectorSize));
}

function readPrimaries({ slots }: BootRecord): Partition[] {
  return slots
    .map(({ type, start, count }, index) =>
      partitionOf(index + 1, type, start, count)
    )
    .filter(({ type, count }) => type !== 0 && count > 0);
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
  sectorSize: number,
): TableEntry {
  const { number, type, start, count } = partition;
  return {
    number,
    start: start * sectorSize,
    size: count * sectorSize,
    type: `0x${type.toString(16)}`,
    ...(diskId !== 0 && { uuid: `${hex(diskId, 8)}-${hex(number, 2)}` }),
    ...(isExtended(partition) && { isContainer: true }),
  };
}

function isExtended({ type }: { readonly type: number }): boolean {
  return EXTENDED.includes(type);
}

function isInside({ start, count }: Extent, disk: Disk): boolean {
  return start + count <= disk.sectors;
}

function isWithin(inner: Extent, outer: Extent): boolean {
  return inner.start >= outer.start &&
    inner.start + inner.count <= outer.start + outer.count;
}

/** A file system fills the disk; a table has partitions, behind itself. */
function arePlausible(partitions: Partition[], disk: Disk): boolean {
  return partitions.length > 0 &&
    partitions.every((partition) =>
      partition.start > 0 && isInside(partition, disk)
    );
}

/** What one extended boot record adds to the chain. */
interface Link extends Extent {
  /** The slot of its partition, whose sectors count from here on; not there when the partition was deleted. */
  readonly slot: Slot | undefined;
}

/** The logical partitions in an extended one, in the order of the chain. */
function readLogicals(
  source: ByteSource,
  container: Partition,
  firstNumber: number,
  disk: Disk,
): Partition[] {
  const links = readChain(source, container, disk);
  const partitions: Partition[] = [];
  for (const { slot, start } of links) {
    if (slot === undefined) continue;
    const number = firstNumber + partitions.length;
    if (number > MAX_NUMBER) throw new DamagedTable(beyondMaximum(number));
    const partition = partitionOf(
      number,
      slot.type,
      start + slot.start,
      slot.count,
    );
    if (!isWithin(partition, container)) {
      throw new DamagedTable(
        `${describeExtent(partition)} lies outside the extended ${
          describeExtent(container)
        }`,
      );
    }
    partitions.push(partition);
  }
  refuseOverlaps([...links, ...partitions]);
  return partitions;
}

function readChain(
  source: ByteSource,
  container: Partition,
  disk: Disk,
): Link[] {
  const links: Link[] = [];
  const seen = new Set<number>();
  let start: number | undefined = container.start;
  while (start !== undefined) {
    const here: Extent = {
      what: "the extended boot record",
      start,
      count: 1,
    };
    if (seen.has(start)) {
      throw new DamagedTable(
        `${
          describeExtent(here)
        } comes twice: the logical partitions are a loop`,
      );
    }
    if (links.length === MAX_RECORDS) {
      throw new DamagedTable(
        `there are more than ${MAX_RECORDS} extended boot records`,
      );
    }
    if (!isWithin(here, container)) {
      throw new DamagedTable(
        `${describeExtent(here)} lies outside the extended ${
          describeExtent(container)
        }`,
      );
    }
    seen.add(start);
    const { slot, next } = readLink(source, here, disk);
    links.push({ ...here, slot });
    start = next === undefined ? undefined : container.start + next.start;
  }
  return links;
}

/** The partition of an extended boot record, and the slot that leads to the next one. */
function readLink(
  source: ByteSource,
  here: Extent,
  disk: Disk,
): { slot: Slot | undefined; next: Slot | undefined } {
  const record = readBootRecord(source, here.start * disk.sectorSize);
  if (record === undefined) {
    throw new DamagedTable(`${describeExtent(here)} has no signature`);
  }
  // Some systems leave garbage in the other two slots.
  const used = record.slots.slice(0, 2).filter(({ count }) => count > 0);
  const [slot, secondSlot] = used.filter((slot) => !isExtended(slot));
  const [next, secondNext] = used.filter(isExtended);
  if (secondSlot !== undefined || secondNext !== undefined) {
    throw new DamagedTable(
      `${describeExtent(here)} holds two ${
        secondSlot ? "partitions" : "links"
      }`,
    );
  }
  return { slot, next };
}
