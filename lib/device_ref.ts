/** Resolves the ways in which callers name a device. */
import { isBlockDevice, majorMinor, type Stat } from "./sys/stat.ts";
import { checkMinor, checkPath, type FilePath } from "./arguments.ts";
import {
  LoopError,
  quote,
  StaleDeviceError,
  UnexpectedDevice,
} from "./errors.ts";
import { fileType, unwrapFound } from "./kernel/file_descriptor.ts";
import { FoundFile } from "./kernel/found_file.ts";
import {
  diskSequenceOf,
  hasSysfs,
  isBound,
  LOOP_MAJOR,
} from "./kernel/loop_sysfs.ts";
import { ENOENT } from "./sys/errno.ts";
import { AT_FDCWD } from "./sys/libc.ts";
import { readLink } from "./sys/sysfs.ts";

/**
 * A reference to a loop device: its path (`/dev/loop3`), name (`loop3`) or number, or a
 * row of {@linkcode list}. If the reference has a disk sequence number, the identity of
 * the device is checked, and a device that was reused for another file is left alone.
 * Before Linux 5.15 there are no such numbers, so nothing is checked.
 */
export type DeviceRef =
  | string
  | number
  | { readonly minor: number; readonly diskSequence?: number };

/** Returns the number of the device, without opening anything. */
export function minorOf(device: DeviceRef): number {
  if (typeof device === "string") {
    const place = locate(device);
    return "minor" in place ? place.minor : minorOfNode(place.node);
  }
  return checkMinor(
    typeof device === "object" && device !== null ? device.minor : device,
  );
}

/** Returns the disk sequence number in a reference, if it has one. */
export function sequenceIn(device: DeviceRef): number | undefined {
  if (typeof device !== "object" || device === null) return undefined;
  const { diskSequence } = device;
  if (diskSequence === undefined) return undefined;
  if (typeof diskSequence !== "number") {
    throw new TypeError(
      `Cannot use ${String(diskSequence)} as diskSequence: it must be a number`,
    );
  }
  if (!Number.isSafeInteger(diskSequence) || diskSequence < 0) {
    throw new RangeError(
      `Cannot use ${diskSequence} as diskSequence: it must be an integer, 0 or more`,
    );
  }
  return diskSequence || undefined; // 0 before Linux 5.15
}

/**
 * Throws if, according to sysfs, the device is no longer bound to the file that the
 * reference means.
 */
export function checkNotRecycled(action: string, device: DeviceRef): void {
  const expected = sequenceIn(device);
  const minor = minorOf(device);
  if (expected === undefined || !isBound(minor)) return;
  const actual = diskSequenceOf(minor);
  if (actual !== undefined && actual !== expected) {
    throw recycled(action, `/dev/loop${minor}`);
  }
}

/** Creates the error for a device that is now bound to another file. */
export function recycled(action: string, path: string): StaleDeviceError {
  return new StaleDeviceError(
    `Cannot ${action} ${quote(path)}`,
    path,
    "it is now bound to another file",
  );
}

/**
 * Parses a path: `loop3` and `/dev/loop3` mean the device, any other path the node that
 * it leads to. Accesses nothing.
 */
export function locate(path: string): { minor: number } | { node: FilePath } {
  if (typeof path !== "string") {
    throw new TypeError(
      "Cannot use the device: it must be a path, name or number",
    );
  }
  // The bare name of a partition, which the caller refuses.
  const isPartition = /^loop\d+p\d+$/.test(path);
  const node = checkPath(isPartition ? `/dev/${path}` : path);
  const minor = minorInName(path);
  return minor === undefined ? { node } : { minor: checkMinor(minor) };
}

/**
 * Returns the number in `loop3` or `/dev/loop3`, or `undefined` for any other text. The
 * device need not exist.
 */
export function minorInName(text: string): number | undefined {
  const digits = /^(?:\/dev\/)?loop(0|[1-9]\d*)$/.exec(text)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/** Returns the loop number of the device that a node represents. */
export function minorOfNode(node: FilePath): number {
  using found = findNode(node);
  return minorOfStat(node.text, found.stat);
}

/** Finds a node by its path, without opening it. */
export function findNode(node: FilePath): FoundFile {
  return unwrapFound(FoundFile.find(AT_FDCWD, node.bytes), () => ({
    action: `Cannot open ${quote(node.text)}`,
    operation: "open",
    path: node.text,
  }));
}

/**
 * Returns the loop number of the whole device that a node represents, from its device
 * number.
 */
export function minorOfStat(text: string, stat: Stat): number {
  const name = quote(text);
  const unexpected = (hint: string) =>
    new UnexpectedDevice(-1, stat.rdev, stat.mode, { path: text, hint });
  if (!isBlockDevice(stat)) {
    throw unexpected(`it is ${fileType(stat.mode)}`);
  }
  const [major, minor] = majorMinor(stat.rdev);
  const path = `/sys/dev/block/${major}:${minor}`;
  const target = readLink(path);
  if (typeof target === "string") {
    const [, disk, partition] =
      /\/block\/([^/]+)(?:\/([^/]+))?$/.exec(target) ?? [];
    const digits = /^loop(\d+)$/.exec(disk ?? "")?.[1];
    if (digits === undefined) throw unexpected("it is another block device");
    if (partition === undefined) return Number(digits);
    throw unexpected(
      `it is partition ${quote(partition)} of /dev/${disk}: use /dev/${disk}`,
    );
  }
  if (target !== -ENOENT) {
    throw new LoopError(`Cannot find the device of ${name}`, {
      errno: -target,
      operation: "readlink",
      path,
    });
  }
  if (major === LOOP_MAJOR && !hasSysfs()) return minor;
  throw unexpected("the kernel has no such device");
}
