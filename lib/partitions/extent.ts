/** Ranges of sectors, on the disk or beyond it. */

/** Consecutive sectors of a disk. */
export interface Extent {
  /** Name of the range for messages: `partition 3`. */
  readonly what: string;
  /** The first sector. */
  readonly start: number;
  /** The number of sectors. */
  readonly count: number;
}

/** A disk in units of sectors. */
export interface Disk {
  /** Size of a sector in bytes. */
  readonly sectorSize: number;
  /** The number of whole sectors. */
  readonly sectors: number;
}

/** Describes a disk of the given size in bytes. */
export function diskOf(size: number, sectorSize: number): Disk {
  return { sectorSize, sectors: Math.floor(size / sectorSize) };
}

/** Describes sectors for messages: `partition 3 (sectors 34 to 2047)`. */
export function describe(
  what: string,
  first: number | bigint,
  last: number | bigint,
): string {
  return first === last
    ? `${what} (sector ${first})`
    : `${what} (sectors ${first} to ${last})`;
}

/** Describes the disk for messages: `the disk, which has 2048 sectors of 512 bytes`. */
export function describeDisk({ sectors, sectorSize }: Disk): string {
  return `the disk, which has ${sectors} sectors of ${sectorSize} bytes`;
}

/** Describes a range for messages, with its sectors. */
export function describeExtent({ what, start, count }: Extent): string {
  return describe(what, start, start + count - 1);
}

/** Returns the number of its sectors that are on the disk. */
export function countOn(disk: Disk, { start, count }: Extent): number {
  return Math.max(0, Math.min(count, disk.sectors - start));
}
