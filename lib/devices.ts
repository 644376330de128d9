/** Which loop devices there are, from sysfs: no device is opened. */
import { checkBytes, checkOptions, checkPath } from "./arguments.ts";
import { LoopError, quote } from "./errors.ts";
import { checkStat, FileDescriptor } from "./file_descriptor.ts";
import { Loop } from "./loop.ts";
import { BLOCK, GONE, loopNumbers, throwUnless } from "./loop_sysfs.ts";
import { EACCES, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM } from "./sys/errno.ts";
import { AT_FDCWD, S_IFBLK, S_IFMT, type Stat, statAt } from "./sys/libc.ts";
import { openDirectoryAt, readBytes, readText } from "./sys/sysfs.ts";

/** An attached loop device: plain data. Sizes and offsets are bytes. */
export interface LoopDevice {
  /** The number of the device. */
  minor: number;
  /** The name of the device: `loop3`. */
  name: string;
  /** The path of its node: `/dev/loop3`. */
  path: string;
  /** The size of the device. */
  size: number;
  /** The logical block size. */
  blockSize: number;
  /** Where in the backing file the device begins. */
  offset: number;
  /** How large the device is at most; 0 means no limit. A limit above 2^53-1, which limits nothing, is given as 2^53-1. */
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
   * longer than the kernel can tell (some 4000 bytes).
   */
  backingFile: string;
  /** Whether the backing file has no name any more. */
  deleted: boolean;
  /** Rises whenever a file is bound, exchanged or unbound: equal numbers mean the same binding. 0 before Linux 5.15. */
  diskSequence: number;
}

/** What {@linkcode find} looks for beside the file. */
export interface FindOptions {
  /** Only devices that begin there, in bytes. */
  offset?: number | bigint | undefined;
}

/** A sector of the `size` in sysfs, whatever the block size is. */
const SECTOR = 512;

const DELETED = new TextEncoder().encode(" (deleted)");
const decoder = new TextDecoder();

/**
 * The attached loop devices, in the order of their numbers.
 *
 * They are read from sysfs. No device is opened, so no right is needed and nobody is
 * disturbed: an open descriptor would turn somebody's detach into one that waits for
 * us. (Only when a path ends in ` (deleted)` and a file of that name exists, one is
 * opened to find out.) A device that is detached meanwhile is left out.
 *
 * Requires `--allow-ffi`.
 *
 * @throws {LoopError} when sysfs is not there or cannot be read
 *
 * @example The backing files
 * ```ts
 * import { list } from "@loopdev/loopdev";
 *
 * for (const device of list()) {
 *   console.log(device.path, device.backingFile);
 * }
 * ```
 */
export function list(): LoopDevice[] {
  return readAll().map(({ device }) => device);
}

/**
 * The devices that a file is attached to, by device and inode and not by name: hard
 * links, symbolic links and bind mounts are seen through.
 *
 * Devices are not opened but those whose backing file has no name that leads to it
 * from here. Where another mount namespace gives another file that name, its word is
 * taken. Requires `--allow-ffi`.
 *
 * @param file The file. Relative to the working directory.
 * @throws {LoopError} `ENOENT`, `EACCES` … when the file cannot be examined
 * @throws {RangeError} for a bad offset
 *
 * @example Where a file is attached
 * ```ts
 * import { attach, find } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * await Deno.truncate(path, 4096);
 * {
 *   await using device = await attach(path);
 *   assertEquals(find(path)[0]?.path, device.path);
 * }
 * assertEquals(find(path), []);
 * await Deno.remove(path);
 * ```
 */
export function find(
  file: string | URL,
  options: FindOptions = {},
): LoopDevice[] {
  checkOptions(options, ["offset"]);
  const offset = options.offset === undefined
    ? undefined
    : checkBytes(options.offset, "offset");
  const path = checkPath(file);
  const stat = checkStat(
    statAt(AT_FDCWD, path.bytes),
    `Cannot examine ${quote(path.text)}`,
    path.text,
  );
  return devicesOver(stat).filter((device) =>
    offset === undefined || BigInt(device.offset) === offset
  );
}

/** The devices that a file is attached to. */
export function devicesOver(file: Stat): LoopDevice[] {
  const wanted = identityOf(file);
  return readAll()
    .filter((found) => isBackedBy(found, wanted))
    .map(({ device }) => device);
}

/** A device, and its backing file as the kernel names it: bytes, ending in a NUL. */
interface Found {
  readonly device: LoopDevice;
  readonly backingPath: Uint8Array;
}

/** Says that a path leads nowhere from here. */
const UNREACHABLE = [ENOENT, ENOTDIR, EACCES];

function isBackedBy({ device, backingPath }: Found, file: Identity): boolean {
  if (!device.deleted && device.backingFile !== "") {
    const stat = statAt(AT_FDCWD, backingPath);
    if (typeof stat !== "number") return isSameFile(identityOf(stat), file);
    throwUnless(UNREACHABLE, stat, device.backingFile);
  }
  const backing = backingOf(device.minor);
  return backing !== undefined && isSameFile(backing, file);
}

/** What tells files from one another. */
interface Identity {
  readonly device: number;
  readonly inode: bigint;
  /** Of a block device: it may have several nodes. */
  readonly rdevice: number;
}

function identityOf({ device, inode, rdevice, mode }: Stat): Identity {
  const isBlockDevice = (mode & S_IFMT) === S_IFBLK;
  return { device, inode, rdevice: isBlockDevice ? rdevice : 0 };
}

function isSameFile(a: Identity, b: Identity): boolean {
  return a.rdevice === b.rdevice &&
    (a.rdevice !== 0 || (a.device === b.device && a.inode === b.inode));
}

/** The backing file of a device, asked of the device itself; `undefined` when it was detached, or we may not ask. */
function backingOf(minor: number): Identity | undefined {
  try {
    using loop = new Loop(minor, { readOnly: true });
    const { device, inode, rdevice } = loop.getInfo();
    return { device: Number(device), inode, rdevice: Number(rdevice) };
  } catch (error) {
    const known = [...GONE, EACCES, EPERM];
    if (error instanceof LoopError && known.includes(error.errno)) return;
    throw error;
  }
}

function readAll(): Found[] {
  return loopNumbers()
    .map(readDevice)
    .filter((found) => found !== undefined);
}

/** One device, or `undefined` when no file is attached to it. */
function readDevice(minor: number): Found | undefined {
  const path = `${BLOCK}/loop${minor}`;
  const fd = openDirectoryAt(path);
  if (fd < 0) {
    throwUnless(GONE, fd, path);
    return undefined;
  }
  using directory = new FileDescriptor(fd);
  for (;;) {
    // The attributes are read one after the other. Were the device detached and bound
    // anew in between, they would be those of two devices, and whoever detaches what
    // is listed would detach the wrong one.
    const before = attribute(directory.fd, path, "diskseq");
    const found = readAttributes(minor, directory.fd, path, before);
    if (found === undefined) return undefined;
    if (attribute(directory.fd, path, "diskseq") === before) return found;
  }
}

function attribute(
  directory: number,
  path: string,
  name: string,
): string | undefined {
  const text = readText(name, directory);
  if (typeof text === "string") return text;
  throwUnless(GONE, text, `${path}/${name}`);
  return undefined;
}

function readAttributes(
  minor: number,
  directory: number,
  path: string,
  diskSequence = "0",
): Found | undefined {
  const backing = readBytes("loop/backing_file", directory);
  if (typeof backing === "number") {
    throwUnless([...GONE, ENAMETOOLONG], backing, `${path}/loop/backing_file`);
    if (backing !== -ENAMETOOLONG) return undefined;
  } else if (backing.length === 0) { // while it is being detached
    return undefined;
  }
  const backingPath = typeof backing === "number"
    ? new Uint8Array(1)
    : terminated(backing);

  const [offset, sizelimit, autoclear, partscan, dio, size, ro, blockSize] = [
    "loop/offset",
    "loop/sizelimit",
    "loop/autoclear",
    "loop/partscan",
    "loop/dio",
    "size",
    "ro",
    "queue/logical_block_size",
  ].map((name) => attribute(directory, path, name));
  if (
    offset === undefined || sizelimit === undefined || size === undefined ||
    dio === undefined // the last of the directory that goes when it is detached
  ) return undefined;

  const name = `loop${minor}`;
  const deleted = isDeleted(minor, backingPath);
  return {
    device: {
      minor,
      name,
      path: `/dev/${name}`,
      size: Number(size) * SECTOR,
      blockSize: Number(blockSize),
      offset: saturated(offset),
      sizelimit: saturated(sizelimit),
      readOnly: ro === "1",
      autoclear: autoclear === "1",
      partscan: partscan === "1",
      directIo: dio === "1",
      backingFile: decoder.decode(
        backingPath.subarray(0, -1 - (deleted ? DELETED.length : 0)),
      ),
      deleted,
      diskSequence: Number(diskSequence),
    },
    backingPath,
  };
}

function terminated(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(bytes.length + 1);
  copy.set(bytes);
  return copy;
}

function saturated(text: string): number {
  return Math.min(Number(text), Number.MAX_SAFE_INTEGER);
}

/** Whether ` (deleted)` at the end of a path is the kernel's remark, and not part of a name. */
function isDeleted(minor: number, backingPath: Uint8Array): boolean {
  const end = backingPath.subarray(-1 - DELETED.length, -1);
  if (
    end.length < DELETED.length ||
    !end.every((byte, index) => byte === DELETED[index])
  ) return false;
  const stat = statAt(AT_FDCWD, backingPath);
  if (typeof stat === "number") {
    throwUnless(UNREACHABLE, stat, decoder.decode(backingPath));
    return true;
  }
  const backing = backingOf(minor);
  return backing === undefined || !isSameFile(backing, identityOf(stat));
}
