/** Ranges of sectors, and what the ranges of a table must not do. */
import { DamagedTable } from "./damaged_table.ts";

/** Neighbouring sectors of a disk. */
export interface Extent {
  /** What they are, for messages: `partition 3`. */
  readonly what: string;
  /** The first sector. */
  readonly start: number;
  /** How many there are. */
  readonly count: number;
}

/** The disk as a table sees it. */
export interface Disk {
  /** Bytes in a sector. */
  readonly sectorSize: number;
  /** How many whole sectors there are. */
  readonly sectors: number;
}

/** A disk of so many bytes. */
export function diskOf(size: number, sectorSize: number): Disk {
  return { sectorSize, sectors: Math.floor(size / sectorSize) };
}

/** For messages: `partition 3 (sectors 34 to 2047)`. */
export function describe(
  what: string,
  first: number | bigint,
  last: number | bigint,
): string {
  return first === last
    ? `${what} (sector ${first})`
    : `${what} (sectors ${first} to ${last})`;
}

/** For messages: `the disk, which has 2048 sectors of 512 bytes`. */
export function describeDisk({ sectors, sectorSize }: Disk): string {
  return `the disk, which has ${sectors} sectors of ${sectorSize} bytes`;
}

/** Refuses extents of which two share a sector. */
export function refuseOverlaps(extents: readonly Extent[]): void {
  const sorted = [...extents].sort((a, b) => a.start - b.start);
  for (const [index, extent] of sorted.entries()) {
    const next = sorted[index + 1];
    if (next !== undefined && next.start < extent.start + extent.count) {
      throw new DamagedTable(
        `${describeExtent(extent)} and ${describeExtent(next)} overlap`,
      );
    }
  }
}

/** For messages, with the sectors. */
export function describeExtent({ what, start, count }: Extent): string {
  return describe(what, start, start + count - 1);
}
