/** Controls one loop device: one synchronous method for each ioctl. */
import { S_IFBLK, statOf } from "../sys/stat.ts";
import {
  checkBoolean,
  checkDescriptor,
  checkMinor,
  checkMode,
  checkOptions,
  type FilePath,
} from "../arguments.ts";
import { type Failure, LoopError, quote, unwrap } from "../errors.ts";
import { findNode, locate, minorOfStat } from "../device_ref.ts";
import { checkBlockSize } from "./block_size.ts";
import {
  CONFIGURE_OPTIONS,
  type ConfigureOptions,
  decodeFlags,
  encodeOptions,
  STATUS_CHANGES,
  type StatusChanges,
} from "./configuration.ts";
import {
  checkBackingFile,
  FileDescriptor,
  unwrapStat,
} from "./file_descriptor.ts";
import { pathOf } from "./found_file.ts";
import { removePartitions } from "./remove_partitions.ts";
import { hasPartitions, hasSysfs, isBound, LOOP_MAJOR } from "./loop_sysfs.ts";
import { makeNode } from "./made_node.ts";
import {
  OpenedNode,
  openFoundNode,
  openLoopNode,
  placeIn,
} from "./opened_node.ts";
import {
  BLKBSZGET,
  BLKBSZSET,
  BLKFLSBUF,
  BLKGETDISKSEQ,
  BLKGETSIZE64,
  BLKROGET,
  BLKSSZGET,
} from "../sys/blk_uapi.ts";
import {
  EAGAIN,
  EBADF,
  EBUSY,
  EINVAL,
  EIO,
  ENOSYS,
  ENOTTY,
  ENXIO,
} from "../sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  fsync,
  ioctlPointer,
  ioctlValue,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  openAt,
  tryLock,
} from "../sys/libc.ts";
import { checkTransfer, READ, transfer, WRITE } from "./transfer.ts";
import {
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_PARTSCAN,
  LOOP_CHANGE_FD,
  LOOP_CLR_FD,
  LOOP_CONFIGURE,
  LOOP_GET_STATUS64,
  LOOP_SET_BLOCK_SIZE,
  LOOP_SET_CAPACITY,
  LOOP_SET_DIRECT_IO,
  LOOP_SET_FD,
  LOOP_SET_STATUS64,
  LoopConfig,
  LoopInfo64,
} from "../sys/loop_uapi.ts";

/** Options of the {@linkcode Loop} constructor. */
export interface LoopOptions {
  /**
   * Descriptor of the directory that holds the node. 0 is a valid descriptor. By
   * default, the node is in `/dev`.
   */
  dirFd?: number | undefined;
  /**
   * Opens the device for reading only. A file bound through such a descriptor is
   * read-only.
   *
   * @default {false}
   */
  readOnly?: boolean | undefined;
}

/** Options of {@linkcode Loop.open}. */
export type LoopOpenOptions = Omit<LoopOptions, "dirFd">;

/** Result of {@linkcode Loop.getStatus}. Sizes and offsets are in bytes. */
export interface LoopStatus {
  /** The number of the device. */
  minor: number;
  /** The offset in the backing file at which the device starts. */
  offset: number;
  /** The maximum size of the device; 0 means no limit. */
  sizelimit: number;
  /** `true` if the device was bound read-only. */
  readOnly: boolean;
  /** `true` if the kernel detaches the device at its last close. */
  autoclear: boolean;
  /** `true` if the kernel scans the device for partitions. */
  partscan: boolean;
  /** `true` if the page cache of the backing file is bypassed. */
  directIo: boolean;
  /** The reference text given to the device; empty if none was given. */
  reference: string;
  /** The file system that holds the backing file, as in `st_dev`. */
  backingDevice: number;
  /** The inode number of the backing file. */
  backingInode: bigint;
  /** The device number of a backing block device; 0 for a regular file. */
  backingRdev: number;
}

/** Options of {@linkcode Loop.mknod}. */
export interface MknodOptions {
  /**
   * Descriptor of the directory for the node. By default, the node is created in
   * `/dev`.
   */
  dirFd?: number | undefined;
  /**
   * Permissions of the node, regardless of the umask.
   *
   * @default {0o600}
   */
  mode?: number | undefined;
}

/**
 * Maximum number of retries: Linux 5.0 to 5.18 return EAGAIN while another process
 * reads the device.
 */
const MAX_AGAIN = 64;

/**
 * Returns the descriptors that a `Loop` holds: that of the device, and that of its
 * lock.
 */
export let ownDescriptors: (loop: Loop) => number[];

const u64 = new Uint8Array(8);
const u64View = new DataView(u64.buffer);

/**
 * An open loop device. Each method is one ioctl of `linux/loop.h` or `linux/fs.h`, and
 * throws errors of the kernel as {@linkcode LoopError}.
 *
 * This class is low-level: it neither chooses a device nor verifies the result. To
 * attach a file, use {@linkcode attach}, which does both and detaches without losing
 * data.
 *
 * Closing or disposing closes the descriptor and does not detach the file, but the
 * kernel does at the last close of a device with `autoclear`. The properties of a
 * device are cleared when it is unbound, and kept by {@linkcode Loop.changeFd}.
 * Requires `--allow-ffi`; most methods require root.
 *
 * @example Bind a file to a device
 * ```ts
 * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using control = new LoopControl();
 * using memory = openMemory(1024 * 1024);
 * using loop = new Loop(control.getUnbound());
 * loop.configure(memory.fd, { autoclear: true });
 * assertEquals(loop.getSize(), 1024 * 1024);
 * ```
 */
export class Loop implements Disposable {
  /** The major device number of loop devices, `LOOP_MAJOR` in `linux/major.h`. */
  static readonly MAJOR: 7 = LOOP_MAJOR;

  /** The loop number: 3 for `/dev/loop3`. */
  readonly minor: number;
  /** The name of the device: `loop3`. */
  readonly name: string;
  /**
   * The path the device was opened by: `/dev/loop3`, or the path of the directory
   * `dirFd` followed by the name.
   */
  readonly path: string;
  readonly #readOnly: boolean;
  readonly #rdev: number;
  #fd: number;
  /** A second descriptor of the device, which holds the lock of {@linkcode Loop.lock}. */
  #lock: FileDescriptor | undefined;

  /**
   * Opens `/dev/loop<minor>`, or the node of that name in `dirFd`.
   *
   * The node is examined first, and then that very node is opened: it must be a block
   * device with the number that the kernel assigns to that loop device. A FIFO
   * therefore cannot hang the call, and a leftover node of a removed device does not
   * create the device again.
   *
   * @param minor The loop number, 0 to 1048575.
   * @param options Options for opening the node.
   * @throws {UnexpectedDevice} If the node is not that device, or the kernel has no
   * such device.
   * @throws {LoopError} If the node does not exist (`ENOENT`) or may not be opened
   * (`EACCES`), or the device is being detached (`ENXIO`).
   * @throws {RangeError} If the number is out of range.
   *
   * @example Open a device by number
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * const minor = control.getUnbound();
   * using loop = new Loop(minor, { readOnly: true });
   * assertEquals(loop.path, `/dev/loop${minor}`);
   * ```
   */
  constructor(minor: number, options: LoopOptions = {}) {
    const node = options instanceof OpenedNode
      ? options
      : openNodeOf(minor, options);
    this.minor = node.minor;
    this.name = `loop${node.minor}`;
    this.path = node.path;
    this.#readOnly = node.readOnly;
    this.#rdev = node.rdev;
    this.#fd = node.fd;
  }

  /**
   * Opens a device by name (`loop3`), path (`/dev/loop3`), or any path to a node of a
   * whole loop device.
   *
   * @param path The name or path.
   * @param options Options for opening the node.
   * @returns The open device.
   * @throws {UnexpectedDevice} If the path does not lead to a whole loop device. For a
   * partition, the message names its disk.
   * @throws {LoopError} If the node cannot be opened, as for the constructor.
   *
   * @example Open a device by path
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * const minor = control.getUnbound();
   * using loop = Loop.open(`/dev/loop${minor}`);
   * assertEquals(loop.minor, minor);
   * ```
   */
  static open(path: string, options: LoopOpenOptions = {}): Loop {
    checkOptions(options, ["readOnly"]);
    const place = locate(path);
    return "minor" in place
      ? new Loop(place.minor, options)
      : openNode(place.node, options);
  }

  static {
    ownDescriptors = (loop) => [loop.#fd, loop.#lock?.fd ?? -1];
  }

  /** The open descriptor; -1 once it is closed. */
  get fd(): number {
    return this.#fd;
  }

  /**
   * Binds a backing file, without offset, limit or flags (`LOOP_SET_FD`). The device is
   * read-only if the descriptor is. {@linkcode Loop.configure} also sets the properties
   * in the same step.
   *
   * A file must not be bound to a device that it leads back to, directly or through
   * other loop devices; the kernel refuses that with `EBADF`. Two devices over the same
   * bytes of a file corrupt them.
   *
   * @param fd The descriptor of a regular file or block device. It stays yours and may
   * be closed afterwards.
   * @throws {LoopError} If the device is already bound or held exclusively (`EBUSY`),
   * if the descriptor is closed or the file leads back to the device (`EBADF`), or if
   * it is another kind of file (`EISDIR`, `EINVAL`).
   *
   * @example Bind a file, then detach it
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.setFd(memory.fd);
   * assertEquals(loop.getSize(), 4096);
   * loop.clearFd(); // detaches at the end of the block
   * ```
   */
  setFd(fd: number): void {
    this.#checkBacking(fd, "LOOP_SET_FD");
    this.#value(
      "LOOP_SET_FD",
      LOOP_SET_FD,
      BigInt(fd),
      "attach a file to",
      BINDING_HINTS,
    );
  }

  /**
   * Marks the device for clearing (`LOOP_CLR_FD`). The kernel detaches the file at the
   * last close of the device, including that of this descriptor: call
   * {@linkcode Loop.close} next.
   *
   * From Linux 6.11 on, `LOOP_CLR_FD` from the only descriptor discards data that was
   * written but is not in the file yet, even by other processes. This method therefore
   * opens the node a second time, writes back, clears the device with both descriptors
   * open, and closes the second one.
   *
   * @throws {LoopError} If no file is attached (`ENXIO`), or writing back failed
   * (`EIO`, `ENOSPC`; the device is marked nonetheless).
   *
   * @example Detach a file
   * ```ts
   * import { inspect, Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertNotEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * const loop = new Loop(control.getUnbound());
   * loop.setFd(memory.fd);
   * const { diskSequence } = inspect(loop)!;
   * loop.clearFd();
   * loop.close();
   * assertNotEquals(inspect(loop.minor)?.diskSequence, diskSequence);
   * ```
   */
  clearFd(): void {
    const fd = this.#open("LOOP_CLR_FD");
    const second = reopen(this, O_RDONLY, "clear");
    try {
      const written = fsync(fd);
      unwrap(
        ioctlValue(second.fd, LOOP_CLR_FD, 0n),
        this.#failure("LOOP_CLR_FD", "clear"),
      );
      unwrap(written, this.#failure("fsync", "write back", "it was cleared"));
    } finally {
      second.close();
    }
  }

  /**
   * Exchanges the backing file of a read-only device for another of the same size, even
   * while it is in use (`LOOP_CHANGE_FD`). Offset, limit, flags and reference are kept,
   * and the device stays read-only whatever the new descriptor allows. The disk
   * sequence number rises.
   *
   * Before Linux 5.15, the device shows what was read of the old file until
   * {@linkcode Loop.flushBuffers} is called.
   *
   * Partitions of the old file are removed. The kernel scans for those of the new file
   * if `partscan` is on and it can read the table; {@linkcode partitions} creates them
   * on any kernel.
   *
   * @param fd The descriptor of the new file. It stays yours and may be closed
   * afterwards.
   * @throws {LoopError} If the device is not read-only or the size differs (`EINVAL`),
   * if a partition is in use (`EBUSY`), if no file is attached (`ENXIO`), or if the
   * descriptor is closed or the file leads back to the device (`EBADF`).
   *
   * @example Exchange the file of a device in use
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using first = openMemory(4096);
   * using second = openMemory(new Uint8Array(4096).fill(1));
   * using loop = new Loop(control.getUnbound());
   * loop.configure(first.fd, { readOnly: true, autoclear: true });
   * loop.changeFd(second.fd);
   * const sector = new Uint8Array(512);
   * loop.read(sector, 0);
   * assertEquals(sector[0], 1);
   * ```
   */
  changeFd(fd: number): void {
    this.#checkBacking(fd, "LOOP_CHANGE_FD");
    const what = "change the backing file of";
    const change = () =>
      this.#value("LOOP_CHANGE_FD", LOOP_CHANGE_FD, BigInt(fd), what, {
        [EINVAL]:
          "the device must be read-only and the new file must have the same size",
        [EBADF]: "the file leads back to this device",
      });
    this.#withoutPartitions(this.#fd, what, change);
  }

  /** Removes the partitions before a change that would make them show other bytes. */
  #withoutPartitions(fd: number, what: string, change: () => void): void {
    const { minor, path } = this;
    // Without sysfs, the existing partitions cannot be determined.
    if (!hasSysfs() || !hasPartitions(minor)) return change();
    const restore = removePartitions({ fd, minor, path }, what);
    try {
      change();
    } catch (error) {
      restore();
      throw error;
    }
  }

  /**
   * Resizes the device to the current size of its backing file (`LOOP_SET_CAPACITY`).
   * Call it after the file has grown.
   *
   * @throws {LoopError} If no file is attached (`ENXIO`).
   *
   * @example Grow a device
   * ```ts
   * import { Loop, LoopControl, openFile } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * await Deno.truncate(path, 4096);
   * using control = new LoopControl();
   * using file = openFile(path);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(file.fd, { autoclear: true });
   * await Deno.truncate(path, 8192);
   * loop.setCapacity();
   * assertEquals(loop.getSize(), 8192);
   * await Deno.remove(path);
   * ```
   */
  setCapacity(): void {
    this.#value("LOOP_SET_CAPACITY", LOOP_SET_CAPACITY, 0n, "resize");
  }

  /**
   * Turns direct I/O to the backing file on or off (`LOOP_SET_DIRECT_IO`, Linux 4.4).
   * Direct I/O bypasses the page cache of the file. A change takes about 16 ms.
   *
   * @param enable `true` to turn it on, which is the default.
   * @throws {LoopError} If direct I/O is not possible, because the file system does not
   * support it or the offset or block size is not a multiple of its blocks (`EINVAL`),
   * or if no file is attached (`ENXIO`).
   *
   * @example Turn direct I/O off
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { directIo: true, autoclear: true });
   * loop.setDirectIo(false);
   * assertEquals(loop.getStatus().directIo, false);
   * ```
   */
  setDirectIo(enable = true): void {
    checkBoolean(enable, "enable");
    this.#value(
      "LOOP_SET_DIRECT_IO",
      LOOP_SET_DIRECT_IO,
      enable ? 1n : 0n,
      `turn direct I/O ${enable ? "on" : "off"} for`,
      {
        [EINVAL]:
          "the backing file does not support direct I/O, or the offset or block size is not a multiple of its block size",
      },
    );
  }

  /**
   * Sets the logical block size (`LOOP_SET_BLOCK_SIZE`, Linux 4.14). Cached pages are
   * written back first. A device held exclusively (mounted, swap, device-mapper) is
   * refused, because a new block size would break a file system in use.
   *
   * @param bytes A power of two from 512 to the page size, or to 65536 from Linux 6.15
   * on.
   * @throws {RangeError} If the size is none of these.
   * @throws {LoopError} If the device is mounted or held exclusively (`EBUSY`), or if
   * no file is attached (`ENXIO`).
   *
   * @example Use blocks of 4096 bytes
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(8192);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * loop.setBlockSize(4096);
   * assertEquals(loop.getBlockSize(), 4096);
   * ```
   */
  setBlockSize(bytes: number): void {
    const size = BigInt(checkBlockSize(bytes));
    this.#open("LOOP_SET_BLOCK_SIZE");
    const what = "change the block size of";
    using exclusive = this.#exclusive(what);
    const set = () => ioctlValue(exclusive.fd, LOOP_SET_BLOCK_SIZE, size);
    unwrap(
      repeatWhileAgain(set, exclusive.fd),
      this.#failure("LOOP_SET_BLOCK_SIZE", what),
    );
    fitPageCache(this, bytes, exclusive.fd);
  }

  /**
   * Binds a backing file and sets all properties in one step (`LOOP_CONFIGURE`, Linux
   * 5.8). Takes a few microseconds. `LOOP_SET_FD` followed by `LOOP_SET_STATUS64` takes
   * 16 ms, and other processes can see the half-configured device in between.
   *
   * @param fd The descriptor of a regular file or block device. It stays yours and may
   * be closed afterwards.
   * @param options The properties to set.
   * @throws {LoopError} If the device is already bound or held exclusively (`EBUSY`),
   * if the descriptor is closed or the file leads back to the device (`EBADF`), if it
   * is another kind of file (`EISDIR`, `EINVAL`), or before Linux 5.8 (`EINVAL`), where
   * {@linkcode Loop.setFd} and {@linkcode Loop.setStatus} still work.
   * @throws {TypeError} If `readOnly: false` is given for a device opened `readOnly`.
   * @throws {RangeError} If the offset, limit, block size or reference is out of range.
   *
   * @example Bind a file from an offset on
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(1024 * 1024);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { offset: 4096, blockSize: 4096, autoclear: true });
   * assertEquals(loop.getSize(), 1024 * 1024 - 4096);
   * ```
   */
  configure(fd: number, options: ConfigureOptions = {}): void {
    checkOptions(options, CONFIGURE_OPTIONS);
    const config = encodeOptions(options);
    if (this.#readOnly && options.readOnly === false) {
      throw new TypeError(
        `Cannot attach a file for writing to ${
          quote(this.path)
        }: it was opened readOnly`,
      );
    }
    this.#checkBacking(fd, "LOOP_CONFIGURE");
    config.fd = fd;
    bind(this, config, `descriptor ${fd}`);
    try {
      fitPageCache(this, this.getBlockSize());
    } catch (error) {
      this.clearFd(); // certainly ours: this descriptor has been open since
      throw error;
    }
  }

  /**
   * Returns the status structure exactly as the kernel provides it
   * (`LOOP_GET_STATUS64`).
   *
   * @returns A copy of the structure.
   * @throws {LoopError} If no file is attached (`ENXIO`).
   *
   * @example Read an exact limit
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(8192);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { sizelimit: 4096, autoclear: true });
   * assertEquals(loop.getInfo().sizelimit, 4096n);
   * ```
   */
  getInfo(): LoopInfo64 {
    this.#open("LOOP_GET_STATUS64");
    return readInfo(this, new LoopInfo64());
  }

  /**
   * Returns the decoded status of the device (`LOOP_GET_STATUS64`).
   *
   * @returns Plain data. Sizes and offsets are in bytes.
   * @throws {LoopError} If no file is attached (`ENXIO`).
   * @throws {RangeError} If the offset or limit is above `Number.MAX_SAFE_INTEGER`;
   * {@linkcode Loop.getInfo} returns such values exactly.
   *
   * @example Read the reference of a device
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(8192);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true, reference: "build 7" });
   * assertEquals(loop.getStatus().reference, "build 7");
   * ```
   */
  getStatus(): LoopStatus {
    const info = this.getInfo();
    return {
      minor: this.minor,
      offset: this.#safe(info.offset, "offset"),
      sizelimit: this.#safe(info.sizelimit, "sizelimit"),
      ...decodeFlags(info.flags),
      reference: info.fileName,
      backingDevice: this.#safe(info.device, "backingDevice"),
      backingInode: info.inode,
      backingRdev: this.#safe(info.rdevice, "backingRdev"),
    };
  }

  /**
   * Changes a bound device (`LOOP_SET_STATUS64`). Fields that are absent or `undefined`
   * keep their value; `0` and `false` are set. The status is read, modified and written
   * (about 16 ms), which is not atomic: a change by another process in between is lost.
   *
   * A change of offset or limit is refused with `EBUSY` if the device is mounted or
   * held exclusively, because it would corrupt the file system. A change of the offset
   * removes the partitions, because they would show other bytes.
   *
   * @param changes The fields to change.
   * @throws {LoopError} If no file is attached (`ENXIO`); if the device is mounted or
   * held exclusively and the offset or limit would change, or from Linux 6.19 on
   * anything (`EBUSY`).
   * @throws {TypeError} If `partscan: false` is given for a device that has it, which
   * the kernel would silently ignore.
   * @throws {RangeError} If the offset, limit or reference is out of range.
   *
   * @example Move the start of a device
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(8192);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { offset: 4096, autoclear: true });
   * loop.setStatus({ offset: 0 });
   * assertEquals(loop.getSize(), 8192);
   * ```
   */
  setStatus(changes: StatusChanges): void {
    checkOptions(changes, STATUS_CHANGES);
    const wanted = encodeOptions(changes).info;
    this.#open("LOOP_SET_STATUS64");
    const info = this.getInfo();
    if (
      changes.partscan === false && (info.flags & LO_FLAGS_PARTSCAN) !== 0
    ) {
      throw new TypeError(
        `Cannot turn partscan off for ${
          quote(this.path)
        }: the kernel keeps it until the device is detached`,
      );
    }

    const { offset, sizelimit, flags, fileName } = info;
    if (changes.offset !== undefined) info.offset = wanted.offset;
    if (changes.sizelimit !== undefined) info.sizelimit = wanted.sizelimit;
    if (changes.reference !== undefined) info.fileName = wanted.fileName;
    if (changes.autoclear !== undefined) {
      info.flags = changes.autoclear
        ? info.flags | LO_FLAGS_AUTOCLEAR
        : info.flags & ~LO_FLAGS_AUTOCLEAR;
    }
    info.flags |= wanted.flags & LO_FLAGS_PARTSCAN;

    const what = "change";
    if (info.offset !== offset || info.sizelimit !== sizelimit) {
      using exclusive = this.#exclusive(what);
      const change = () => this.#setInfo(exclusive.fd, info, what);
      if (info.offset === offset) change();
      else this.#withoutPartitions(exclusive.fd, what, change);
    } else if (info.flags !== flags || info.fileName !== fileName) {
      this.#setInfo(this.#fd, info, what);
    }
  }

  #setInfo(fd: number, info: LoopInfo64, what: string): void {
    const set = () => ioctlPointer(fd, LOOP_SET_STATUS64, info.bytes);
    unwrap(
      repeatWhileAgain(set, fd),
      this.#failure("LOOP_SET_STATUS64", what, {
        ...NOT_BOUND,
        [EBUSY]:
          "from Linux 6.19 on, this is refused while the disk or a partition is mounted or held exclusively",
      }),
    );
  }

  /**
   * Returns the size of the device in bytes (`BLKGETSIZE64`); 0 if no file is attached.
   *
   * @returns The size in bytes.
   * @throws {RangeError} If the size is above `Number.MAX_SAFE_INTEGER`.
   *
   * @example Read the size of a device
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * assertEquals(loop.getSize(), 4096);
   * ```
   */
  getSize(): number {
    return this.#safe(exactSize(this), "size");
  }

  /**
   * Returns the logical block size in bytes (`BLKSSZGET`).
   *
   * @returns The block size in bytes.
   *
   * @example Read the block size of a device
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(8192);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { blockSize: 4096, autoclear: true });
   * assertEquals(loop.getBlockSize(), 4096);
   * ```
   */
  getBlockSize(): number {
    return Number(readNumber(this, "BLKSSZGET", BLKSSZGET));
  }

  /**
   * Returns the disk sequence number (`BLKGETDISKSEQ`, Linux 5.15), which rises
   * whenever a file is bound, exchanged or unbound. Two equal numbers mean the same
   * binding.
   *
   * @returns The disk sequence number.
   * @throws {LoopError} If the kernel is older than Linux 5.15 (`EINVAL`).
   *
   * @example Notice that a file was bound
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assert } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * const before = loop.getDiskSequence();
   * loop.configure(memory.fd, { autoclear: true });
   * assert(loop.getDiskSequence() > before);
   * ```
   */
  getDiskSequence(): number {
    return this.#safe(
      readNumber(this, "BLKGETDISKSEQ", BLKGETDISKSEQ),
      "disk sequence",
    );
  }

  /**
   * Returns `true` if the device cannot be written to (`BLKROGET`), because it was
   * bound read-only or `blockdev --setro` was applied to it.
   *
   * @returns `true` if writes are refused.
   *
   * @example Check that a device is read-only
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assert } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { readOnly: true, autoclear: true });
   * assert(loop.isReadOnly());
   * ```
   */
  isReadOnly(): boolean {
    return readNumber(this, "BLKROGET", BLKROGET) !== 0n;
  }

  /**
   * Reads bytes of the device through its page cache (`pread`). Reading a device with
   * `Deno.open` requires `--allow-all`. {@linkcode Attachment.read} does not block the
   * event loop.
   *
   * @param buffer The buffer to fill.
   * @param position The offset on the device to start at, in bytes.
   * @returns The number of bytes read, which is less than requested only at the end of
   * the device.
   * @throws {LoopError} If the backing file cannot be read (`EIO`).
   * @throws {RangeError} If the position is negative or fractional.
   *
   * @example Read the first sector
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(new Uint8Array(4096).fill(7));
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * const sector = new Uint8Array(512);
   * assertEquals(loop.read(sector, 0), 512);
   * assertEquals(sector[511], 7);
   * ```
   */
  read(buffer: Uint8Array, position: number): number {
    return this.#transfer(READ, buffer, position);
  }

  /**
   * Writes bytes to the device through its page cache (`pwrite`). They are in the
   * backing file after {@linkcode Loop.sync}, or once the device is detached.
   *
   * @param bytes The bytes to write.
   * @param position The offset on the device to start at, in bytes.
   * @returns The number of bytes written, which is less than requested only at the end
   * of the device.
   * @throws {LoopError} If the position is past the end of the device (`ENOSPC`), or
   * the device is read-only or was opened read-only (`EPERM`, `EBADF`).
   * @throws {RangeError} If the position is negative or fractional.
   *
   * @example Write the second sector
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * assertEquals(loop.write(new Uint8Array(512).fill(1), 512), 512);
   * ```
   */
  write(bytes: Uint8Array, position: number): number {
    return this.#transfer(WRITE, bytes, position);
  }

  #transfer(
    direction: typeof READ | typeof WRITE,
    bytes: Uint8Array,
    position: number,
  ): number {
    checkTransfer(bytes, position);
    const fd = this.#open(direction.operation);
    return transfer(direction, { fd, path: this.path, bytes, position });
  }

  /**
   * Writes everything written through the device to the backing file and its disk
   * (`fsync`).
   *
   * @throws {LoopError} If writing back fails (`EIO`, `ENOSPC`).
   *
   * @example Write to the backing file
   * ```ts
   * import { Loop, LoopControl, openFile } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * await Deno.truncate(path, 4096);
   * using control = new LoopControl();
   * using file = openFile(path);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(file.fd, { autoclear: true });
   * loop.write(new Uint8Array(512).fill(1), 0);
   * loop.sync();
   * assertEquals((await Deno.readFile(path))[511], 1);
   * await Deno.remove(path);
   * ```
   */
  sync(): void {
    unwrap(
      fsync(this.#open("fsync")),
      this.#failure("fsync", "write back"),
    );
  }

  /**
   * Writes back and drops the cached pages of the device (`BLKFLSBUF`), so that the
   * next reader sees changes made directly to the backing file. Requires
   * `CAP_SYS_ADMIN`.
   *
   * @throws {LoopError} If the process lacks the capability (`EACCES`).
   *
   * @example See a change of the backing file
   * ```ts
   * import { Loop, LoopControl, openFile } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * await Deno.truncate(path, 4096);
   * using control = new LoopControl();
   * using file = openFile(path);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(file.fd, { autoclear: true });
   * const sector = new Uint8Array(512);
   * loop.read(sector, 0); // caches the old content
   * await Deno.writeFile(path, new Uint8Array(4096).fill(1), { create: false });
   * loop.flushBuffers();
   * loop.read(sector, 0);
   * assertEquals(sector[0], 1);
   * await Deno.remove(path);
   * ```
   */
  flushBuffers(): void {
    this.#value("BLKFLSBUF", BLKFLSBUF, 0n, "flush the buffers of");
  }

  /**
   * Locks the device (`flock` on a second descriptor). udev leaves a device alone while
   * it is locked exclusively. The lock is held until {@linkcode Loop.unlock} or
   * {@linkcode Loop.close}; locking again changes the mode. Does not wait.
   *
   * @param mode `"exclusive"` keeps udev away; `"shared"` is the mode that udev itself
   * uses.
   * @returns `true` if the device is locked, `false` if another process holds a
   * conflicting lock.
   *
   * @example Keep udev away from a device
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using loop = new Loop(control.getUnbound());
   * using other = new Loop(loop.minor);
   * assertEquals(loop.lock("exclusive"), true);
   * assertEquals(other.lock("exclusive"), false);
   * ```
   */
  lock(mode: "shared" | "exclusive"): boolean {
    if (mode !== "shared" && mode !== "exclusive") {
      throw new TypeError(
        `Cannot lock ${quote(this.path)}: mode must be "shared" or "exclusive"`,
      );
    }
    this.#open("flock");
    const lock = this.#lock ?? reopen(this, O_RDONLY, "lock");
    const result = tryLock(lock.fd, mode === "exclusive");
    if (result >= 0) {
      this.#lock = lock;
      return true;
    }
    // A failed change of the mode loses the lock that was held before.
    this.#lock = undefined;
    lock.close();
    if (result === -EAGAIN) return false;
    unwrap(result, this.#failure("flock", "lock"));
    return false;
  }

  /**
   * Releases the lock of {@linkcode Loop.lock} by closing its descriptor, upon which
   * udev examines the device again. Does nothing if the device is not locked.
   *
   * @example Release a lock
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using loop = new Loop(control.getUnbound());
   * using other = new Loop(loop.minor);
   * loop.lock("exclusive");
   * loop.unlock();
   * assertEquals(other.lock("exclusive"), true);
   * ```
   */
  unlock(): void {
    this.#open("flock");
    this.#releaseLock();
  }

  #releaseLock(): void {
    const lock = this.#lock;
    this.#lock = undefined;
    lock?.close();
  }

  /**
   * Creates another node of this device, with the same name, in a directory. A node
   * that is left over gives access to whatever is bound to that number later, so remove
   * it when it is no longer needed. Requires `CAP_MKNOD`.
   *
   * In a directory that other users can write to, only the node created here gets the
   * mode; if another user replaces it during the call, an error is thrown.
   *
   * @param options The directory and the permissions.
   * @throws {LoopError} If the name exists (`EEXIST`) or the process lacks the
   * capability (`EPERM`).
   *
   * @example Create a node in another directory
   * ```ts
   * import { Loop, LoopControl, openDirectory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempDir();
   * using control = new LoopControl();
   * using directory = openDirectory(path);
   * using loop = new Loop(control.getUnbound());
   * loop.mknod({ dirFd: directory.fd, mode: 0o660 });
   * using same = Loop.open(`${path}/${loop.name}`);
   * assertEquals(same.minor, loop.minor);
   * await Deno.remove(path, { recursive: true });
   * ```
   */
  mknod(options: MknodOptions = {}): void {
    checkOptions(options, ["dirFd", "mode"]);
    const mode = options.mode === undefined ? 0o600 : checkMode(options.mode);
    const dirFd = options.dirFd === undefined
      ? AT_FDCWD
      : checkDescriptor(options.dirFd, "dirFd");
    this.#open("mknod");
    const { node } = placeIn(dirFd, this.name);
    makeNode(dirFd, node, S_IFBLK | mode, this.#rdev);
  }

  /**
   * Closes the descriptor and releases the lock. A second call does nothing. This
   * method does not detach the file, but the kernel does if this was the last
   * descriptor and `autoclear` is set.
   *
   * @example Close a device
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * const loop = new Loop(control.getUnbound());
   * loop.close();
   * assertEquals(loop.fd, -1);
   * ```
   */
  close(): void {
    this.#releaseLock();
    const fd = this.#fd;
    this.#fd = -1;
    if (fd !== -1) new FileDescriptor(fd).close();
  }

  /** Closes the descriptor, like {@linkcode Loop.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Returns the descriptor, or throws if it is closed. */
  #open(operation: string): number {
    if (this.#fd !== -1) return this.#fd;
    throw new LoopError(`Cannot use ${quote(this.path)}`, {
      errno: EBADF,
      operation,
      path: this.path,
      hint: "it is closed",
    });
  }

  /**
   * Opens the device again with O_EXCL, which fails with EBUSY while it or a partition
   * is mounted or held exclusively.
   */
  #exclusive(what: string): FileDescriptor {
    const access = this.#readOnly ? O_RDONLY : O_RDWR;
    return reopen(this, access | O_EXCL, what);
  }

  #checkBacking(fd: number, operation: string): void {
    checkDescriptor(fd, "fd");
    this.#open(operation);
    const action = `Cannot attach descriptor ${fd} to ${quote(this.path)}`;
    checkBackingFile(
      unwrapStat(statOf(fd), action, this.path, operation),
      action,
      this.path,
    );
  }

  #value(
    operation: string,
    request: number,
    value: bigint,
    what: string,
    hints: Failure["hint"] = NOT_BOUND,
  ): void {
    unwrap(
      ioctlValue(this.#open(operation), request, value),
      this.#failure(operation, what, hints),
    );
  }

  /** Converts a bigint to a number, or throws if that would round it. */
  #safe(value: bigint, field: string): number {
    if (value <= Number.MAX_SAFE_INTEGER) return Number(value);
    throw new RangeError(
      `Cannot give ${field} of ${
        quote(this.path)
      } as a number: ${value} is above 2^53-1`,
    );
  }

  #failure(
    operation: string,
    what: string,
    hint?: Failure["hint"],
  ): () => Failure {
    const path = this.path;
    return () => ({
      action: `Cannot ${what} ${quote(path)}`,
      operation,
      path,
      hint,
    });
  }
}

const NOT_BOUND = { [ENXIO]: "no file is attached to it" };

const status = new LoopInfo64();

/**
 * Reads `LOOP_GET_STATUS64` into a shared structure, valid only until the next call.
 * Saves allocating a structure, which takes longer than filling one.
 */
export function currentInfo(loop: Loop): LoopInfo64 {
  return readInfo(loop, status);
}

function readInfo(loop: Loop, info: LoopInfo64): LoopInfo64 {
  const { fd, path } = loop;
  unwrap(
    fd === -1 ? -EBADF : ioctlPointer(fd, LOOP_GET_STATUS64, info.bytes),
    () => ({
      action: `Cannot read the status of ${quote(path)}`,
      operation: "LOOP_GET_STATUS64",
      path,
      hint: { ...NOT_BOUND, [EBADF]: "it is closed" },
    }),
  );
  return info;
}

/** Issues one of the `BLK*GET*` ioctls, which return a number of 32 or 64 bits. */
function readNumber(loop: Loop, operation: string, request: number): bigint {
  const { fd, path } = loop;
  const hint = fd === -1 ? "it is closed" : undefined;
  u64View.setBigUint64(0, 0n, true);
  unwrap(ioctlPointer(fd, request, u64), () => ({
    action: `Cannot examine ${quote(path)}`,
    operation,
    path,
    hint,
  }));
  return u64View.getBigUint64(0, true);
}

/** Returns the exact size of an open device in bytes. */
export function exactSize(loop: Loop): bigint {
  return readNumber(loop, "BLKGETSIZE64", BLKGETSIZE64);
}

/**
 * Makes the blocks of a device's page cache at least as large as its logical blocks.
 * The kernel chooses their size when the device is opened, up to the page size. From
 * Linux 6.15 on, a logical block may be larger, and every write would then fail with
 * `EIO`.
 */
export function fitPageCache(
  loop: Loop,
  blockSize: number,
  fd: number = loop.fd,
): void {
  if (pageCacheBlockSize(loop) >= blockSize) return;
  const size = new Uint8Array(4);
  new DataView(size.buffer).setInt32(0, blockSize, true);
  const { path } = loop;
  const failure = {
    action: `Cannot use blocks of ${blockSize} bytes in the page cache of ${
      quote(path)
    }`,
    operation: "BLKBSZSET",
    path,
  };
  unwrap(ioctlPointer(fd, BLKBSZSET, size), () => ({
    ...failure,
    hint: { [EBUSY]: "another program holds the device exclusively" },
  }));
  unwrap(pageCacheBlockSize(loop) >= blockSize ? 0 : -EIO, () => failure);
}

/** Returns the block size of the page cache of an open device, in bytes. */
export function pageCacheBlockSize(loop: Loop): number {
  return Number(readNumber(loop, "BLKBSZGET", BLKBSZGET));
}

/** Opens the same device again, even if its path now leads elsewhere. */
export function reopen(
  loop: Loop,
  flags: number,
  what: string,
): FileDescriptor {
  const isClosed = loop.fd === -1;
  return new FileDescriptor(
    unwrap(
      isClosed ? -EBADF : openAt(AT_FDCWD, cString(pathOf(loop.fd)), flags),
      () => ({
        action: `Cannot ${what} ${quote(loop.path)}`,
        operation: "open",
        path: loop.path,
        hint: {
          [EBADF]: "it is closed",
          [EBUSY]: "it is mounted or otherwise held exclusively",
        },
      }),
    ),
  );
}

/** Hints for the errors of binding a file. */
const BINDING_HINTS: Record<number, string> = {
  [EBUSY]: "it is already attached or held exclusively",
  [EBADF]: "the file leads back to this device",
  // Some kernels require the file to have `write_iter` if the device was opened for
  // writing; iso9660 does not.
  [EINVAL]:
    "the file is a loop device without a backing file, or its file system cannot back a loop device; Linux 6.12.29, 6.14.7 and 6.15 bind files on some read-only file systems, such as iso9660, only to a device opened readOnly",
};

/** Binds a file to an open device (`LOOP_CONFIGURE`). */
export function bind(loop: Loop, config: LoopConfig, file: string): void {
  const result = ioctlPointer(loop.fd, LOOP_CONFIGURE, config.bytes);
  if (result >= 0) return;
  const errno = -result;
  throw bindError(file, loop.path, errno, canConfigure(loop, errno));
}

/**
 * Throws the error of binding a file to a device that has one already. Opening that
 * device instead could make its owner's detach wait for us.
 */
export function refuseBound(minor: number, file: string): void {
  if (isBound(minor)) throw bindError(file, `/dev/loop${minor}`, EBUSY);
}

function bindError(
  file: string,
  path: string,
  errno: number,
  isKnown = true,
): LoopError {
  return new LoopError(`Cannot attach ${file} to ${quote(path)}`, {
    errno,
    operation: "LOOP_CONFIGURE",
    path,
    hint: isKnown
      ? BINDING_HINTS[errno]
      : "this kernel has no LOOP_CONFIGURE (Linux 5.8); use setFd() and setStatus()",
  });
}

/**
 * Returns `true` if the kernel supports `LOOP_CONFIGURE`, after it failed with the
 * given error.
 */
function canConfigure(loop: Loop, errno: number): boolean {
  const unknown = [EINVAL, ENOTTY, ENOSYS];
  return !unknown.includes(errno) || !unknown.includes(-configureNothing(loop));
}

/**
 * Probes for LOOP_CONFIGURE with an invalid descriptor. Returns -EBADF if the kernel
 * supports it; changes nothing.
 */
export function configureNothing(loop: Loop): number {
  const nothing = new LoopConfig();
  nothing.fd = 0xffffffff; // -1 as an unsigned number
  return ioctlPointer(loop.fd, LOOP_CONFIGURE, nothing.bytes);
}

/**
 * Calls until the result is not `EAGAIN`, which Linux 5.0 to 5.18 return while another
 * process reads the device.
 */
export function repeatWhileAgain(call: () => number, fd: number): number {
  let result = call();
  for (let tries = 1; result === -EAGAIN && tries < MAX_AGAIN; tries++) {
    fsync(fd);
    result = call();
  }
  return result;
}

/** Opens the node for the constructor. */
function openNodeOf(minor: number, options: LoopOptions): OpenedNode {
  checkOptions(options, ["dirFd", "readOnly"]);
  const name = `loop${checkMinor(minor)}`;
  const readOnly = checkBoolean(options.readOnly, "readOnly") ?? false;
  const dirFd = options.dirFd === undefined
    ? AT_FDCWD
    : checkDescriptor(options.dirFd, "dirFd");
  return openLoopNode(minor, placeIn(dirFd, name), readOnly);
}

/** Opens the whole loop device that a node represents. */
export function openNode(
  node: FilePath,
  { readOnly = false }: LoopOpenOptions,
): Loop {
  using found = findNode(node);
  const minor = minorOfStat(node.text, found.stat);
  return new Loop(minor, openFoundNode(minor, found, { node, readOnly }));
}
