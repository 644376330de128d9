/** Reads attached devices from sysfs, and finds those that a file is attached to. */
import { isBlockDevice, isRegularFile, type Stat } from "../sys/stat.ts";
import { LoopError } from "../errors.ts";
import { FileDescriptor } from "./file_descriptor.ts";
import { Loop } from "./loop.ts";
import {
  bindingOf,
  BLOCK,
  existingMinors,
  GONE,
  isBound,
  throwUnless,
} from "./loop_sysfs.ts";
import { isMemory, isOurs, Lookup } from "./lookup.ts";
import { openLoop } from "./nodes.ts";
import type { LoopInfo64 } from "../sys/loop_uapi.ts";
import { ENAMETOOLONG, ENOENT } from "../sys/errno.ts";
import {
  type CString,
  cString,
  O_RDONLY,
  openAt,
  terminated,
} from "../sys/libc.ts";
import {
  openDirectoryAt,
  readBytes,
  readDecimal,
  readOpenDecimal,
} from "../sys/sysfs.ts";

/** An attached loop device, as plain data. Sizes and offsets are in bytes. */
export interface LoopDevice {
  /** The number of the device. */
  minor: number;
  /** The name of the device: `loop3`. */
  name: string;
  /** The path of its node: `/dev/loop3`. */
  path: string;
  /** The size of the device. Clamped to `Number.MAX_SAFE_INTEGER`. */
  size: number;
  /** The logical block size. */
  blockSize: number;
  /**
   * The offset in the backing file at which the device starts. Clamped to
   * `Number.MAX_SAFE_INTEGER`; {@linkcode Loop.getInfo} returns the exact value.
   */
  offset: number;
  /**
   * The maximum size of the device; 0 means no limit. Clamped to
   * `Number.MAX_SAFE_INTEGER`, which is no limit in practice.
   */
  sizelimit: number;
  /** `true` if the device cannot be written to. */
  readOnly: boolean;
  /** `true` if the kernel detaches the device at its last close. */
  autoclear: boolean;
  /** `true` if the kernel scans the device for partitions. */
  partscan: boolean;
  /** `true` if the page cache of the backing file is bypassed. */
  directIo: boolean;
  /**
   * The current path of the backing file, even after it was renamed, without
   * ` (deleted)`. Bytes that are not UTF-8 read as U+FFFD. Empty if the path is longer
   * than the kernel can report: one page, which is 4096 bytes on most machines.
   */
  backingFile: string;
  /** `true` if the backing file was deleted. */
  deleted: boolean;
  /**
   * The disk sequence number, which rises whenever a file is bound, exchanged or
   * unbound: equal numbers mean the same binding. 0 before Linux 5.15. During an
   * exchange (`LOOP_CHANGE_FD`), the kernel raises it some milliseconds early, so the
   * new number is briefly seen with the old file.
   */
  diskSequence: number;
  /**
   * The reference text given to the device; present only if {@linkcode list} was asked
   * for it.
   */
  reference?: string;
}

/** Unit of the `size` attribute in sysfs, whatever the block size is. */
const SECTOR = 512;

const DELETED = new TextEncoder().encode(" (deleted)");
const decoder = new TextDecoder();

/** A device, with exact values that do not fit into plain data. */
export interface DeviceRecord {
  readonly device: LoopDevice;
  /** The exact offset in the backing file at which the device starts. */
  readonly offset: bigint;
  /** The exact maximum size of the device. */
  readonly sizelimit: bigint;
  /** The path of the backing file as the kernel reports it: NUL-terminated bytes. */
  readonly backingPath: Uint8Array;
  /**
   * Identifies the binding on kernels without disk sequence numbers: the result of
   * {@linkcode bindingOf}.
   */
  readonly binding: bigint | undefined;
}

/** Identity of one binding of a device. */
interface Moment {
  readonly diskSequence: number;
  readonly binding: bigint | undefined;
}

/**
 * Finds the devices that a file is attached to. Skips a device whose file is on a file
 * system that might not answer, unless `file` is on the same one.
 */
export function devicesBackedBy(
  file: Pick<Stat, "device" | "inode" | "rdev" | "mode">,
): DeviceRecord[] {
  return devicesWith(identityOf(file));
}

/** Finds all devices with the file of one of them, as `devicesBackedBy` does. */
export function devicesBackedLike(info: FileInfo): DeviceRecord[] {
  return devicesWith(identityIn(info));
}

function devicesWith(wanted: Identity): DeviceRecord[] {
  const isWanted = (found: Identity) => isSameFile(found, wanted);
  return [...searchBacked(isWanted, new Lookup(wanted.device))]
    .flatMap((found) => found?.record ?? []);
}

/** A loop device on top of a block device. */
export interface UpperDevice {
  /** `loop5` */
  readonly name: string;
  /** The device number of the block device below it. */
  readonly rdev: number;
}

/**
 * Finds the loop devices attached to any of the given block devices, in one pass.
 * Yields `undefined` for every other device, so that the caller can let the event loop
 * run.
 */
export function* devicesOnTop(
  rdevs: ReadonlySet<number>,
  lookup: Lookup,
): Generator<UpperDevice | undefined> {
  const isWanted = ({ rdev }: Identity) => rdev !== 0 && rdevs.has(rdev);
  // Files in memory are regular ones, and their names lead nowhere, so every device with
  // one would be opened. That delays a detach by its owner.
  for (const found of searchBacked(isWanted, lookup, isDeletedMemory)) {
    yield found && { name: found.record.device.name, rdev: found.file.rdev };
  }
}

/** Returns `true` for a file in memory, and not for a node in `/` with such a name. */
function isDeletedMemory(path: CString): boolean {
  return isMemory(path) && endsInDeleted(path);
}

interface Backed {
  readonly record: DeviceRecord;
  readonly file: Identity;
}

function* searchBacked(
  isWanted: (file: Identity) => boolean,
  lookup: Lookup,
  isRuledOut: (path: CString) => boolean = () => false,
): Generator<Backed | undefined> {
  for (const minor of existingMinors()) {
    const record = mayBeBackedBy(minor, isWanted, lookup, isRuledOut)
      ? readDevice(minor, lookup)
      : undefined;
    const file = record && backingFileOf(record, isWanted, lookup);
    yield record && file && { record, file };
  }
}

/** Compares only the path of the backing file, which usually rules the device out. */
function mayBeBackedBy(
  minor: number,
  isWanted: (file: Identity) => boolean,
  lookup: Lookup,
  isRuledOut: (path: CString) => boolean,
): boolean {
  const path = `${BLOCK}/loop${minor}/loop/backing_file`;
  const bytes = readBytes(path);
  if (typeof bytes === "number") {
    throwUnless([...GONE, ENAMETOOLONG], bytes, path);
    return bytes === -ENAMETOOLONG || isBound(minor);
  }
  const backing = terminated(bytes);
  if (isRuledOut(backing)) return false;
  const stat = lookup.examine(backing);
  if (stat !== undefined && isWanted(identityOf(stat))) return true;
  // If the path leads nowhere or is marked deleted, ask the device itself.
  return (stat === undefined || endsInDeleted(backing)) &&
    !lookup.canHang(backing);
}

/** Identifies the backing file of a device, if it is wanted. */
function backingFileOf(
  { device, backingPath, binding }: DeviceRecord,
  isWanted: (file: Identity) => boolean,
  lookup: Lookup,
): Identity | undefined {
  let named: Identity | undefined;
  if (!device.deleted && device.backingFile !== "") {
    const stat = lookup.examine(backingPath);
    if (stat !== undefined) {
      named = identityOf(stat);
      if (!isWanted(named)) return undefined;
    }
  }
  // A name is not proof: another file may be mounted over it.
  if (named === undefined && lookup.canHang(backingPath)) return undefined;
  const { minor, diskSequence } = device;
  const backing = backingOf(minor, { diskSequence, binding });
  if (backing === "gone") return undefined;
  if (backing === "secret") return named;
  return isWanted(backing) ? backing : undefined;
}

/**
 * Whether the path of a backing file leads to that file here, and not to another one or
 * nowhere, as for a device of another container. `"gone"` if the device was detached.
 */
export type Place = "here" | "elsewhere" | "unknown" | "gone";

/**
 * Determines where the backing file of a device is. Of a deleted file, only the path is
 * known, as of a device that cannot be opened. The result is `"unknown"` if its file
 * system might not answer.
 */
export function placeOf(record: DeviceRecord, lookup: Lookup): Place {
  const { device: { minor, diskSequence, deleted }, binding } = record;
  if (deleted) return "here";
  if (lookup.canHang(record.backingPath)) return "unknown";
  const stat = lookup.examine(record.backingPath);
  if (stat === undefined) return "elsewhere";
  const backing = backingOf(minor, { diskSequence, binding });
  if (backing === "gone") return "gone";
  if (backing === "secret") return "here"; // detaching it will fail, too
  return isSameFile(backing, identityOf(stat)) ? "here" : "elsewhere";
}

/** Identity of a file. */
interface Identity {
  readonly device: number;
  readonly inode: bigint;
  /** The device number, for a block device: it may have several nodes. */
  readonly rdev: number;
}

function identityOf(
  { device, inode, rdev, mode }: Pick<
    Stat,
    "device" | "inode" | "rdev" | "mode"
  >,
): Identity {
  return { device, inode, rdev: isBlockDevice({ mode }) ? rdev : 0 };
}

/** The backing file, as a device reports it. */
type FileInfo = Pick<LoopInfo64, "device" | "inode" | "rdevice">;

function identityIn({ device, inode, rdevice }: FileInfo): Identity {
  return { device: Number(device), inode, rdev: Number(rdevice) };
}

function isSameFile(a: Identity, b: Identity): boolean {
  return a.rdev === b.rdev &&
    (a.rdev !== 0 || (a.device === b.device && a.inode === b.inode));
}

/**
 * Identifies the backing file by LOOP_GET_STATUS64. Returns `"gone"` if the device was
 * detached, and `"secret"` if it cannot be opened: by default, not even through a
 * temporary node, so that this process cannot detach it either.
 */
function backingOf(
  minor: number,
  moment: Moment,
  open: typeof openLoop = openLoop,
): Identity | "gone" | "secret" {
  try {
    using loop = open(minor, { readOnly: true });
    const info = loop.getInfo();
    return isOfMoment(loop, moment) ? identityIn(info) : "gone";
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    // Still attached, but its node in /dev is missing or wrong.
    if (GONE.includes(error.errno) && !isBound(minor)) return "gone";
    if (isOurs(error.errno)) throw error;
    return "secret";
  }
}

/**
 * Returns `true` if an open device still has the given binding. It cannot be bound
 * again while it is open.
 */
function isOfMoment(loop: Loop, { diskSequence, binding }: Moment): boolean {
  return diskSequence === 0
    ? bindingOf(loop.minor) === binding
    : loop.getDiskSequence() === diskSequence;
}

/** Reads all attached devices, in numeric order. */
export function readDevices(): DeviceRecord[] {
  const lookup = new Lookup();
  return existingMinors()
    .map((minor) => readDevice(minor, lookup))
    .filter((found) => found !== undefined);
}

/** Maximum number of times to read a device that others keep attaching and detaching. */
const MAX_LOOKS = 16;
/** Maximum number of pauses to wait for the size of a device, a millisecond each. */
const MAX_PAUSES = 3;

/**
 * Reads one device. Returns `undefined` if no file is attached to it or it does not
 * exist.
 */
export function readDevice(
  minor: number,
  lookup: Lookup = new Lookup(),
): DeviceRecord | undefined {
  let empty: DeviceRecord | undefined;
  for (let look = 1; look <= MAX_LOOKS; look++) {
    const found = lookAt(minor, lookup);
    if (found === "changed") continue;
    // A device that vanished during the look may have been attached again.
    if (found === undefined && isBound(minor)) continue;
    if (found === undefined || found.device.size > 0) return found;
    if (isTooSmall(found, lookup)) return found;
    // The kernel sets the size last, a moment after the rest becomes visible.
    if (look > MAX_PAUSES) return found;
    empty = found;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
  }
  return empty;
}

/** Returns `true` if a file is smaller than a sector, so that its device has size 0. */
function isTooSmall(
  { backingPath, offset, sizelimit }: DeviceRecord,
  lookup: Lookup,
): boolean {
  if (sizelimit > 0n && sizelimit < BigInt(SECTOR)) return true;
  const stat = lookup.examine(backingPath);
  return stat !== undefined && isRegularFile(stat) &&
    stat.size < offset + BigInt(SECTOR);
}

/**
 * Reads one device once. If it changes during the read, it may be attached again and
 * must be read again.
 */
function lookAt(
  minor: number,
  lookup: Lookup,
): DeviceRecord | "changed" | undefined {
  // The directory exists only while a file is attached, and a new binding gets a new
  // one.
  const path = `${BLOCK}/loop${minor}/loop`;
  const fd = openDirectoryAt(path);
  if (fd < 0) {
    throwUnless(GONE, fd, path);
    return undefined;
  }
  using directory = new FileDescriptor(fd);
  // The attributes are read one after the other. If the device were detached and bound
  // again in between, they would describe two bindings, and detaching the row would
  // detach the wrong one.
  const sequence = openAt(directory.fd, DISKSEQ, O_RDONLY);
  if (sequence < 0) {
    throwUnless(GONE, sequence, `${path}/../diskseq`);
    return lookByBinding(minor, directory.fd, path, lookup);
  }
  using opened = new FileDescriptor(sequence);
  const before = sequenceAt(opened.fd, path);
  if (before === undefined) return "changed";
  const moment = { diskSequence: before, binding: undefined };
  const found = readAttributes(minor, directory.fd, path, moment, lookup);
  const isSame = sequenceAt(opened.fd, path) === before;
  return found !== undefined && isSame ? found : "changed";
}

/**
 * Reads a device before Linux 5.15, where an exchange of the file during the read is
 * not noticed.
 */
function lookByBinding(
  minor: number,
  directory: number,
  path: string,
  lookup: Lookup,
): DeviceRecord | "changed" {
  const binding = bindingOf(minor);
  const moment = { diskSequence: 0, binding };
  const found = readAttributes(minor, directory, path, moment, lookup);
  const isSame = bindingOf(minor) === binding;
  return found !== undefined && isSame ? found : "changed";
}

const DISKSEQ = cString("../diskseq");
const BACKING_FILE = cString("backing_file");
const NAMES = [
  "offset",
  "sizelimit",
  "autoclear",
  "partscan",
  "dio",
  "../size",
  "../ro",
  "../queue/logical_block_size",
] as const;
const ATTRIBUTES = NAMES.map(cString);
/** Maps each name to a number. */
type EachOf<Names> = { -readonly [Index in keyof Names]: number | bigint };

function sequenceAt(fd: number, path: string): number | undefined {
  const value = Number(readOpenDecimal(fd));
  if (value >= 0) return value;
  throwUnless(GONE, value, `${path}/../diskseq`);
  return undefined;
}

function attribute(
  directory: number,
  path: string,
  name: CString,
): number | bigint | undefined {
  const value = readDecimal(name, directory);
  if (value >= 0) return value;
  throwUnless(
    GONE,
    Number(value),
    `${path}/${decoder.decode(name.subarray(0, -1))}`,
  );
  return undefined;
}

/**
 * Reads the NUL-terminated path of the backing file. Returns `undefined` while the
 * device is being detached.
 */
function backingPathAt(
  directory: number,
  path: string,
): Uint8Array | undefined {
  const backing = readBytes(BACKING_FILE, directory);
  if (typeof backing !== "number") {
    return backing.length === 0 ? undefined : terminated(backing);
  }
  throwUnless([...GONE, ENAMETOOLONG], backing, `${path}/backing_file`);
  return backing === -ENAMETOOLONG ? new Uint8Array(1) : undefined;
}

function readAttributes(
  minor: number,
  directory: number,
  path: string,
  moment: Moment,
  lookup: Lookup,
): DeviceRecord | undefined {
  const values = ATTRIBUTES.map((name) => attribute(directory, path, name));
  // The attributes appear and disappear one by one.
  if (values.includes(undefined)) return undefined;
  const [offset, sizelimit, autoclear, partscan, dio, size, ro, blockSize] =
    values as EachOf<typeof NAMES>;
  // On detaching, the kernel removes the file first and then resets the attributes,
  // long before it raises the disk sequence number. While the file is there, nothing
  // was reset.
  const backingPath = backingPathAt(directory, path);
  if (backingPath === undefined) return undefined;

  const name = `loop${minor}`;
  const deleted = isDeleted(minor, moment, backingPath, lookup);
  return {
    offset: BigInt(offset),
    sizelimit: BigInt(sizelimit),
    backingPath,
    binding: moment.binding,
    device: {
      minor,
      name,
      path: `/dev/${name}`,
      size: Math.min(Number(size) * SECTOR, Number.MAX_SAFE_INTEGER),
      blockSize: Number(blockSize),
      offset: saturated(offset),
      sizelimit: saturated(sizelimit),
      readOnly: ro === 1,
      autoclear: autoclear === 1,
      partscan: partscan === 1,
      directIo: dio === 1,
      backingFile: decoder.decode(
        backingPath.subarray(0, -1 - (deleted ? DELETED.length : 0)),
      ),
      deleted,
      diskSequence: moment.diskSequence,
    },
  };
}

function saturated(value: number | bigint): number {
  return Math.min(Number(value), Number.MAX_SAFE_INTEGER);
}

/** Returns `true` if a NUL-terminated path ends in ` (deleted)`. */
function endsInDeleted(path: Uint8Array): boolean {
  const start = path.length - 1 - DELETED.length;
  return start >= 0 &&
    DELETED.every((byte, index) => path[start + index] === byte);
}

/**
 * Returns `true` if ` (deleted)` at the end of a path was added by the kernel, and is
 * not part of the name.
 */
function isDeleted(
  minor: number,
  moment: Moment,
  backingPath: Uint8Array,
  lookup: Lookup,
): boolean {
  if (!endsInDeleted(backingPath)) return false;
  const stat = lookup.examine(backingPath);
  if (stat === undefined || lookup.canHang(backingPath)) return true;
  // Listing creates no nodes.
  const open = (minor: number) => new Loop(minor, { readOnly: true });
  const backing = backingOf(minor, moment, open);
  return typeof backing === "string" ||
    !isSameFile(backing, identityOf(stat));
}

/**
 * Reads the reference from the device itself. Returns `undefined` if it was detached,
 * or if asking could mean waiting for the server of its file.
 *
 * @throws {LoopError} If the device may not be opened.
 */
export function referenceOf(
  { device, backingPath, binding }: DeviceRecord,
  lookup: Lookup = new Lookup(),
): string | undefined {
  const { minor, diskSequence } = device;
  if (lookup.canHang(backingPath)) return undefined;
  try {
    using loop = openLoop(minor, { readOnly: true });
    const { fileName } = loop.getInfo();
    return isOfMoment(loop, { diskSequence, binding }) ? fileName : undefined;
  } catch (error) {
    // ENXIO is also returned while the device is being detached. If it has no node and
    // none can be made, its state is unknown.
    const isGone = error instanceof LoopError && GONE.includes(error.errno) &&
      !(error.errno === ENOENT && isBound(minor));
    if (isGone) return undefined;
    throw error;
  }
}
