/** What sysfs says of loop devices, without opening them. */
import { makedev, statAt } from "../sys/stat.ts";
import { LoopError, quote } from "../errors.ts";
import { ENODEV, ENOENT, ENXIO } from "../sys/errno.ts";
import { AT_FDCWD, transientCString } from "../sys/libc.ts";
import { hasEntry, listDirectory, readBytes, readText } from "../sys/sysfs.ts";

const encoder = new TextEncoder();

/** All virtual block devices. The path through `/sys/block` takes twice as long. */
export const BLOCK = "/sys/devices/virtual/block";

/** `LOOP_MAJOR`, linux/major.h. */
export const LOOP_MAJOR = 7;

/** What a read says of a device that was detached or removed meanwhile. */
export const GONE: readonly number[] = [ENOENT, ENODEV, ENXIO];

/** A sector of sizes in sysfs, whatever the block size is. */
const SECTOR = 512;

/** Throws an error number, unless it is one of those that mean something to the caller. */
export function throwUnless(
  known: readonly number[],
  result: number,
  path: string,
): void {
  if (known.includes(-result)) return;
  throw new LoopError(`Cannot read ${quote(path)}`, {
    errno: -result,
    operation: "open",
    path,
  });
}

function exists(path: string): boolean {
  const stat = statAt(AT_FDCWD, transientCString(path));
  if (typeof stat !== "number") return true;
  throwUnless(GONE, stat, path);
  return false;
}

/** Whether there is a sysfs: a container may have none. */
export function hasSysfs(): boolean {
  return exists("/sys/dev/block");
}

/**
 * The device number of a loop device, as `st_rdev` has it; `undefined` when the
 * kernel has no such device. With the module parameter `max_part` it is not 7:minor.
 * Without sysfs it is taken to be that.
 */
export function rdevOf(minor: number): number | undefined {
  const rdev = readRdev(`${BLOCK}/loop${minor}/dev`);
  if (rdev !== undefined || hasSysfs()) return rdev;
  return makedev(LOOP_MAJOR, minor);
}

function readRdev(path: string): number | undefined {
  const bytes = readBytes(path);
  if (typeof bytes === "number") {
    throwUnless(GONE, bytes, path);
    return undefined;
  }
  const colon = bytes.indexOf(COLON);
  return makedev(
    decimal(bytes, 0, colon),
    decimal(bytes, colon + 1, bytes.length),
  );
}

const COLON = ":".charCodeAt(0);

/** The number that these digits are. */
function decimal(digits: Uint8Array, start: number, end: number): number {
  let value = 0;
  for (let at = start; at < end; at++) value = value * 10 + digits[at]! - 48;
  return value;
}

/** A partition of a loop device, as the kernel has it. */
export interface KernelPartition {
  /** 1 for `loop3p1`. */
  readonly number: number;
  /** `loop3p1` */
  readonly name: string;
}

/** Whether the kernel has partitions for a device: as `partitionsOf`, but faster. */
export function hasPartitions(minor: number): boolean {
  const path = `${BLOCK}/loop${minor}`;
  const found = hasEntry(path, encoder.encode(`loop${minor}p`));
  if (typeof found === "boolean") return found;
  throwUnless(GONE, found, path);
  return false;
}

/** The partitions that the kernel has for a device, in order. An unbound device may have some of its last owner. */
export function partitionsOf(minor: number): KernelPartition[] {
  const path = `${BLOCK}/loop${minor}`;
  const names = listDirectory(path);
  if (typeof names === "number") {
    throwUnless(GONE, names, path);
    return [];
  }
  return names
    .map((name) => ({
      name,
      number: Number(/^loop\d+p(\d+)$/.exec(name)?.[1]),
    }))
    .filter(({ number }) => !Number.isNaN(number))
    .sort((a, b) => a.number - b.number);
}

/** Where a partition is on the disk, in bytes; `undefined` when it has gone. */
export function extentOf(
  minor: number,
  { name }: KernelPartition,
): { start: number; size: number } | undefined {
  const sectors = (attribute: string): number | undefined => {
    const path = `${BLOCK}/loop${minor}/${name}/${attribute}`;
    const text = readText(path);
    if (typeof text === "string") return Number(text) * SECTOR;
    throwUnless(GONE, text, path);
    return undefined;
  };
  const start = sectors("start");
  const size = sectors("size");
  return start === undefined || size === undefined
    ? undefined
    : { start, size };
}

/** The device number of a partition, as `st_rdev` has it; `undefined` when it has gone. */
export function rdevOfPartition(
  minor: number,
  { name }: KernelPartition,
): number | undefined {
  return readRdev(`${BLOCK}/loop${minor}/${name}/dev`);
}

/** Whether a file is attached to a device. That it is being detached does not count as free. */
export function isBound(minor: number): boolean {
  return exists(`${BLOCK}/loop${minor}/loop`);
}

/**
 * What tells the binding of a device from those before and after it, on every kernel: the
 * inode of `loop/` in sysfs, which is made when a file is bound and removed at the
 * detach. Unlike the disk sequence number it stays when the file is exchanged.
 * `undefined` when no file is attached, or there is no sysfs.
 */
export function bindingOf(minor: number): bigint | undefined {
  const path = `${BLOCK}/loop${minor}/loop`;
  const stat = statAt(AT_FDCWD, transientCString(path));
  if (typeof stat !== "number") return stat.inode;
  throwUnless(GONE, stat, path);
  return undefined;
}

/** The disk sequence number of a device; `undefined` before Linux 5.15, and when there is no such device. */
export function diskSequenceOf(minor: number): number | undefined {
  const path = `${BLOCK}/loop${minor}/diskseq`;
  const text = readText(path);
  if (typeof text === "string") return Number(text);
  throwUnless(GONE, text, path);
  return undefined;
}

/** The numbers of the loop devices that exist, in order. */
export function existingMinors(): number[] {
  const names = listDirectory(BLOCK);
  if (typeof names !== "number") return minorsAmong(names);
  // There may be no virtual block device; but there must be sysfs.
  const missing = names === -ENOENT;
  if (missing && hasSysfs() && !exists(BLOCK)) return [];
  throw new LoopError("Cannot list the loop devices", {
    errno: -names,
    operation: "open",
    path: BLOCK,
    hint: missing ? "sysfs is not mounted on /sys" : undefined,
  });
}

/** The numbers of the names that loop devices have, in order. */
export function minorsAmong(names: readonly string[]): number[] {
  return names
    .map((name) => /^loop(0|[1-9]\d*)$/.exec(name)?.[1])
    .filter((digits) => digits !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}
