/** Ranges of sectors, on the disk or not. */

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

/** For messages, with the sectors. */
export function describeExtent({ what, start, count }: Extent): string {
  return describe(what, start, start + count - 1);
}

/** How many of the sectors are on the disk. */
export function countOn(disk: Disk, { start, count }: Extent): number {
  return Math.max(0, Math.min(count, disk.sectors - start));
}
