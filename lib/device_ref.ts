/** How callers name a device. */
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
 * A loop device: its path (`/dev/loop3`), name (`loop3`) or number, or what
 * {@linkcode list} gives. With a disk sequence number its identity is checked: a
 * device that was recycled meanwhile is left alone. Before Linux 5.15 there are no such
 * numbers, and your word is taken for it.
 */
export type DeviceRef =
  | string
  | number
  | { readonly minor: number; readonly diskSequence?: number };

/** The number of the device that is meant. Nothing is opened. */
export function minorOf(device: DeviceRef): number {
  if (typeof device === "string") {
    const place = locate(device);
    return "minor" in place ? place.minor : minorOfNode(place.node);
  }
  return checkMinor(
    typeof device === "object" && device !== null ? device.minor : device,
  );
}

/** The disk sequence number in a reference, where it has one. */
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

/** Throws when a device, by what sysfs says, is bound to something else than what the reference means. */
export function checkNotRecycled(action: string, device: DeviceRef): void {
  const expected = sequenceIn(device);
  const minor = minorOf(device);
  if (expected === undefined || !isBound(minor)) return;
  const actual = diskSequenceOf(minor);
  if (actual !== undefined && actual !== expected) {
    throw recycled(action, `/dev/loop${minor}`);
  }
}

/** The error for a device that is bound to something else by now. */
export function recycled(action: string, path: string): StaleDeviceError {
  return new StaleDeviceError(
    `Cannot ${action} ${quote(path)}`,
    path,
    "it is bound to something else by now",
  );
}

/**
 * Which loop device `loop3` or `/dev/loop3` means; any other path means the node that it
 * leads to. Nothing is looked at.
 */
export function locate(path: string): { minor: number } | { node: FilePath } {
  if (typeof path !== "string") {
    throw new TypeError(
      "Cannot find the device: it must be a path, name or number",
    );
  }
  // A partition by its name alone: to be refused as one.
  const isPartition = /^loop\d+p\d+$/.test(path);
  const node = checkPath(isPartition ? `/dev/${path}` : path);
  const minor = minorInName(path);
  return minor === undefined ? { node } : { minor: checkMinor(minor) };
}

/** The number in `loop3` or `/dev/loop3`, which no device need have; `undefined` for any other text. */
export function minorInName(text: string): number | undefined {
  const digits = /^(?:\/dev\/)?loop(0|[1-9]\d*)$/.exec(text)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/** The loop number of the device that a node stands for. */
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

/** The loop number of the whole device that a node stands for, by its numbers. */
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
