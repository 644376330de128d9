/** Reads the state of loop devices from sysfs, without opening them. */
import { makedev, statAt } from "../sys/stat.ts";
import { LoopError, quote } from "../errors.ts";
import { ENODEV, ENOENT, ENXIO } from "../sys/errno.ts";
import { AT_FDCWD, transientCString } from "../sys/libc.ts";
import {
  hasEntry,
  listDirectory,
  numbersIn,
  readBytes,
  readText,
} from "../sys/sysfs.ts";

const encoder = new TextEncoder();

/**
 * Directory of all virtual block devices. Lookups through `/sys/block` take twice as
 * long.
 */
export const BLOCK = "/sys/devices/virtual/block";

/** `LOOP_MAJOR`, linux/major.h. */
export const LOOP_MAJOR = 7;

/** Errors of reading a device that was detached or removed during the call. */
export const GONE: readonly number[] = [ENOENT, ENODEV, ENXIO];

/** Unit of sizes in sysfs, whatever the block size is. */
const SECTOR = 512;

/** Throws an error number, unless it is one of those that the caller handles. */
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

/** Returns `true` if sysfs is mounted, which it may not be in a container. */
export function hasSysfs(): boolean {
  return exists("/sys/dev/block");
}

/**
 * Returns the device number of a loop device, as in `st_rdev`, or `undefined` if the
 * kernel has no such device. With the module parameter `max_part`, it is not 7:minor.
 * Without sysfs, it is assumed to be.
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

/** Parses decimal digits. */
function decimal(digits: Uint8Array, start: number, end: number): number {
  let value = 0;
  for (let at = start; at < end; at++) value = value * 10 + digits[at]! - 48;
  return value;
}

/** A partition of a loop device, as the kernel has it. */
export interface KernelPartition {
  /** The number of the partition: 1 for `loop3p1`. */
  readonly number: number;
  /** The name of the partition: `loop3p1`. */
  readonly name: string;
}

/**
 * Returns `true` if the kernel has partitions for a device. Faster than `partitionsOf`.
 */
export function hasPartitions(minor: number): boolean {
  const path = `${BLOCK}/loop${minor}`;
  const found = hasEntry(path, encoder.encode(`loop${minor}p`));
  if (typeof found === "boolean") return found;
  throwUnless(GONE, found, path);
  return false;
}

/**
 * Returns the kernel's partitions of a device, in order. An unbound device may have
 * some left over from its previous file.
 */
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

/**
 * Returns the position of a partition on the disk in bytes, or `undefined` if it no
 * longer exists.
 */
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

/**
 * Returns the device number of a partition, as in `st_rdev`, or `undefined` if it no
 * longer exists.
 */
export function rdevOfPartition(
  minor: number,
  { name }: KernelPartition,
): number | undefined {
  return readRdev(`${BLOCK}/loop${minor}/${name}/dev`);
}

/** Returns `true` if a file is attached to a device, even if it is being detached. */
export function isBound(minor: number): boolean {
  return exists(`${BLOCK}/loop${minor}/loop`);
}

/**
 * Identifies the binding of a device on every kernel, by the inode of `loop/` in sysfs,
 * which is created when a file is bound and removed when it is detached. Unlike the
 * disk sequence number, it does not change when the file is exchanged. Returns
 * `undefined` if no file is attached or there is no sysfs.
 */
export function bindingOf(minor: number): bigint | undefined {
  const path = `${BLOCK}/loop${minor}/loop`;
  const stat = statAt(AT_FDCWD, transientCString(path));
  if (typeof stat !== "number") return stat.inode;
  throwUnless(GONE, stat, path);
  return undefined;
}

/**
 * Returns the disk sequence number of a device, or `undefined` before Linux 5.15 or if
 * there is no such device.
 */
export function diskSequenceOf(minor: number): number | undefined {
  const path = `${BLOCK}/loop${minor}/diskseq`;
  const text = readText(path);
  if (typeof text === "string") return Number(text);
  throwUnless(GONE, text, path);
  return undefined;
}

/** Returns the numbers of the existing loop devices, in order. */
export function existingMinors(): number[] {
  const minors = minorsIn(BLOCK);
  if (typeof minors !== "number") return minors;
  // There may be no virtual block device, but sysfs must exist.
  const missing = minors === -ENOENT;
  if (missing && hasSysfs() && !exists(BLOCK)) return [];
  throw new LoopError("Cannot list the loop devices", {
    errno: -minors,
    operation: "open",
    path: BLOCK,
    hint: missing ? "sysfs is not mounted on /sys" : undefined,
  });
}

/**
 * Returns the numbers of the loop devices named in a directory, in order, or a negative
 * error number.
 */
export function minorsIn(directory: string): number[] | number {
  const minors = numbersIn(directory, LOOP);
  return typeof minors === "number" ? minors : minors.sort((a, b) => a - b);
}

const LOOP = encoder.encode("loop");
