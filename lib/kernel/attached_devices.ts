/** What sysfs says of attached devices, row by row; and which of them a file is attached to. */
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
import { isOurs, Lookup } from "./lookup.ts";
import { openLoop } from "./nodes.ts";
import { ENAMETOOLONG, ENOENT } from "../sys/errno.ts";
import { type CString, cString, O_RDONLY, openAt } from "../sys/libc.ts";
import {
  openDirectoryAt,
  readBytes,
  readDecimal,
  readOpenDecimal,
} from "../sys/sysfs.ts";

/** An attached loop device: plain data. Sizes and offsets are bytes. */
export interface LoopDevice {
  /** The number of the device. */
  minor: number;
  /** The name of the device: `loop3`. */
  name: string;
  /** The path of its node: `/dev/loop3`. */
  path: string;
  /** The size of the device. Above 2^53-1 it is given as that. */
  size: number;
  /** The logical block size. */
  blockSize: number;
  /** Where in the backing file the device begins. Above 2^53-1 it is given as that; {@linkcode Loop.getInfo} is exact. */
  offset: number;
  /** How large the device is at most; 0 means no limit. Above 2^53-1, which limits nothing, it is given as that. */
  sizelimit: number;
  /** Whether the device cannot be written. */
  readOnly: boolean;
  /** Whether the kernel detaches at the last close. */
  autoclear: boolean;
  /** Whether the kernel looks for partitions. */
  partscan: boolean;
  /** Whether the page cache of the backing file is bypassed. */
  directIo: boolean;
  /**
   * The path of the backing file as the kernel knows it now, after renaming too,
   * without ` (deleted)`. Bytes that are not UTF-8 read as U+FFFD. Empty when it is
   * longer than the kernel can tell: a page, of 4096 bytes on most machines.
   */
  backingFile: string;
  /** Whether the backing file has no name any more. */
  deleted: boolean;
  /**
   * Rises whenever a file is bound, exchanged or unbound: equal numbers mean the same
   * binding. 0 before Linux 5.15. While a file is exchanged (`LOOP_CHANGE_FD`) the kernel
   * raises it some milliseconds before, so that for a moment the new number is seen with
   * the old file.
   */
  diskSequence: number;
  /** The text that was given to the device; only where {@linkcode list} was asked for it. */
  reference?: string;
}

/** A sector of the `size` in sysfs, whatever the block size is. */
const SECTOR = 512;

const DELETED = new TextEncoder().encode(" (deleted)");
const decoder = new TextDecoder();

/** A device, and what does not fit into plain data. */
export interface DeviceRecord {
  readonly device: LoopDevice;
  /** Where in the backing file the device begins, exactly. */
  readonly offset: bigint;
  /** How large the device is at most, exactly. */
  readonly sizelimit: bigint;
  /** The backing file as the kernel names it: bytes, ending in a NUL. */
  readonly backingPath: Uint8Array;
  /** Tells the binding where there are no disk sequence numbers: what {@linkcode bindingOf} said. */
  readonly binding: bigint | undefined;
}

/** What tells one binding of a device from the next. */
interface Moment {
  readonly diskSequence: number;
  readonly binding: bigint | undefined;
}

/**
 * The devices that a file is attached to. A device whose file is on a file system that
 * may never answer, another than that of `file`, is none of them.
 */
export function devicesBackedBy(
  file: Pick<Stat, "device" | "inode" | "rdev" | "mode">,
): DeviceRecord[] {
  const wanted = identityOf(file);
  const isWanted = (found: Identity) => isSameFile(found, wanted);
  return [...searchBacked(isWanted, new Lookup(file.device))]
    .flatMap((found) => found?.record ?? []);
}

/** A device on top of a block device. */
export interface UpperDevice {
  /** `loop5` */
  readonly name: string;
  /** The device number of what is below it. */
  readonly rdev: number;
}

/**
 * The devices that are attached to one of some block devices, in one pass; `undefined`
 * for each other device, so that the caller can let the event loop run in between.
 */
export function* devicesOnTop(
  rdevs: ReadonlySet<number>,
): Generator<UpperDevice | undefined> {
  const isWanted = ({ rdev }: Identity) => rdev !== 0 && rdevs.has(rdev);
  for (const found of searchBacked(isWanted, new Lookup())) {
    yield found && { name: found.record.device.name, rdev: found.file.rdev };
  }
}

interface Backed {
  readonly record: DeviceRecord;
  readonly file: Identity;
}

function* searchBacked(
  isWanted: (file: Identity) => boolean,
  lookup: Lookup,
): Generator<Backed | undefined> {
  for (const minor of existingMinors()) {
    const record = mayBeBackedBy(minor, isWanted, lookup)
      ? readDevice(minor, lookup)
      : undefined;
    const file = record && backingFileOf(record, isWanted, lookup);
    yield record && file && { record, file };
  }
}

/** A first look, at the path of the backing file alone. Mostly it leads to another file. */
function mayBeBackedBy(
  minor: number,
  isWanted: (file: Identity) => boolean,
  lookup: Lookup,
): boolean {
  const path = `${BLOCK}/loop${minor}/loop/backing_file`;
  const bytes = readBytes(path);
  if (typeof bytes === "number") {
    throwUnless([...GONE, ENAMETOOLONG], bytes, path);
    return bytes === -ENAMETOOLONG || isBound(minor);
  }
  const backing = terminated(bytes);
  const stat = lookup.examine(backing);
  if (stat !== undefined && isWanted(identityOf(stat))) return true;
  // Where it leads nowhere, or is said to be deleted, the device itself has to tell.
  return (stat === undefined || endsInDeleted(backing)) &&
    !lookup.canHang(backing);
}

/** The backing file of a device, if it is wanted. */
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
  // A name is not proof: another file may have been mounted over it.
  if (named === undefined && lookup.canHang(backingPath)) return undefined;
  const { minor, diskSequence } = device;
  const backing = backingOf(minor, { diskSequence, binding });
  if (backing === "gone") return undefined;
  if (backing === "secret") return named;
  return isWanted(backing) ? backing : undefined;
}

/** What tells files from one another. */
interface Identity {
  readonly device: number;
  readonly inode: bigint;
  /** Of a block device: it may have several nodes. */
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

function isSameFile(a: Identity, b: Identity): boolean {
  return a.rdev === b.rdev &&
    (a.rdev !== 0 || (a.device === b.device && a.inode === b.inode));
}

/** The backing file of a device, asked of the device itself; or that it was detached, or may not be asked. */
function backingOf(
  minor: number,
  moment: Moment,
): Identity | "gone" | "secret" {
  try {
    using loop = new Loop(minor, { readOnly: true });
    const { device, inode, rdevice } = loop.getInfo();
    if (!isOfMoment(loop, moment)) return "gone";
    return { device: Number(device), inode, rdev: Number(rdevice) };
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    // Bound still: there is no node of it here, or not of it.
    if (GONE.includes(error.errno) && !isBound(minor)) return "gone";
    if (isOurs(error.errno)) throw error;
    return "secret";
  }
}

/** Whether an open device, which is not bound anew as long as it is open, has that binding. */
function isOfMoment(loop: Loop, { diskSequence, binding }: Moment): boolean {
  return diskSequence === 0
    ? bindingOf(loop.minor) === binding
    : loop.getDiskSequence() === diskSequence;
}

/** All attached devices, in the order of their numbers. */
export function readDevices(): DeviceRecord[] {
  const lookup = new Lookup();
  return existingMinors()
    .map((minor) => readDevice(minor, lookup))
    .filter((found) => found !== undefined);
}

/** How often a device is looked at anew that others attach and detach meanwhile. */
const MAX_LOOKS = 16;
/** How often to pause for the size of a device, a millisecond each. */
const MAX_PAUSES = 3;

/** One device, or `undefined` when no file is attached to it, or there is no such device. */
export function readDevice(
  minor: number,
  lookup: Lookup = new Lookup(),
): DeviceRecord | undefined {
  let empty: DeviceRecord | undefined;
  for (let look = 1; look <= MAX_LOOKS; look++) {
    const found = lookAt(minor, lookup);
    if (found === "changed") continue;
    if (found === undefined || found.device.size > 0) return found;
    if (isTooSmall(found, lookup)) return found;
    // The kernel sets the size last, a moment after the rest is to be seen.
    if (look > MAX_PAUSES) return found;
    empty = found;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
  }
  return empty;
}

/** Whether a file has no sector to show: a device of no size is all there can be. */
function isTooSmall(
  { backingPath, offset, sizelimit }: DeviceRecord,
  lookup: Lookup,
): boolean {
  if (sizelimit > 0n && sizelimit < BigInt(SECTOR)) return true;
  const stat = lookup.examine(backingPath);
  return stat !== undefined && isRegularFile(stat) &&
    stat.size < offset + BigInt(SECTOR);
}

/** One device as it is at one moment. One that changes meanwhile may have been attached again: it has to be looked at again. */
function lookAt(
  minor: number,
  lookup: Lookup,
): DeviceRecord | "changed" | undefined {
  // Of an unbound device it does not exist; and it is that of one binding only.
  const path = `${BLOCK}/loop${minor}/loop`;
  const fd = openDirectoryAt(path);
  if (fd < 0) {
    throwUnless(GONE, fd, path);
    return undefined;
  }
  using directory = new FileDescriptor(fd);
  // The attributes are read one after the other. Were the device detached and bound
  // anew in between, they would be those of two devices, and whoever detaches what is
  // listed would detach the wrong one.
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

/** Before Linux 5.15. An exchange of the file in between is not noticed. */
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
/** A number for each. */
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

/** The path of the backing file, ending in a NUL; `undefined` when it is being detached. */
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
  // They appear one by one, and so they go.
  if (values.includes(undefined)) return undefined;
  const [offset, sizelimit, autoclear, partscan, dio, size, ro, blockSize] =
    values as EachOf<typeof NAMES>;
  // A detach takes the file away first and resets the rest one by one, long before it
  // raises the disk sequence number. While the file is there nothing was reset.
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

function terminated(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(bytes.length + 1);
  copy.set(bytes);
  return copy;
}

function saturated(value: number | bigint): number {
  return Math.min(Number(value), Number.MAX_SAFE_INTEGER);
}

/** Whether a path that is terminated ends so. */
function endsInDeleted(path: Uint8Array): boolean {
  const start = path.length - 1 - DELETED.length;
  return start >= 0 &&
    DELETED.every((byte, index) => path[start + index] === byte);
}

/** Whether ` (deleted)` at the end of a path is the kernel's remark, and not part of a name. */
function isDeleted(
  minor: number,
  moment: Moment,
  backingPath: Uint8Array,
  lookup: Lookup,
): boolean {
  if (!endsInDeleted(backingPath)) return false;
  const stat = lookup.examine(backingPath);
  if (stat === undefined || lookup.canHang(backingPath)) return true;
  const backing = backingOf(minor, moment);
  return typeof backing === "string" ||
    !isSameFile(backing, identityOf(stat));
}

/**
 * The reference of a device, from the device itself; `undefined` when it was detached, or
 * asking it could mean to wait for the server of its file.
 *
 * @throws {LoopError} when the device may not be opened
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
    // ENXIO also while it is being detached. But where there is no node of it, and none
    // can be made, nobody knows.
    const isGone = error instanceof LoopError && GONE.includes(error.errno) &&
      !(error.errno === ENOENT && isBound(minor));
    if (isGone) return undefined;
    throw error;
  }
}
