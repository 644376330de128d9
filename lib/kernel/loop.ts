/** The device: one method, one ioctl, synchronous. */
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
import { hasPartitions, hasSysfs, LOOP_MAJOR } from "./loop_sysfs.ts";
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

/** How {@linkcode Loop} opens a device. */
export interface LoopOptions {
  /** A descriptor of the directory that holds the node; without it `/dev`. 0 is a valid descriptor. */
  dirFd?: number | undefined;
  /**
   * Open for reading only. A device bound through such a descriptor is read-only.
   *
   * @default {false}
   */
  readOnly?: boolean | undefined;
}

/** What {@linkcode Loop.open} takes. */
export type LoopOpenOptions = Omit<LoopOptions, "dirFd">;

/** What {@linkcode Loop.getStatus} tells. Sizes and offsets are bytes. */
export interface LoopStatus {
  /** The number of the device. */
  minor: number;
  /** Where in the backing file the device begins. */
  offset: number;
  /** How large the device is at most; 0 means no limit. */
  sizelimit: number;
  /** Whether the device was bound read-only. */
  readOnly: boolean;
  /** Whether the kernel detaches at the last close. */
  autoclear: boolean;
  /** Whether the kernel looks for partitions. */
  partscan: boolean;
  /** Whether the page cache of the backing file is bypassed. */
  directIo: boolean;
  /** The text that was given to the device; empty when none was. */
  reference: string;
  /** The file system that holds the backing file, as in `st_dev`. */
  backingDevice: number;
  /** The inode number of the backing file. */
  backingInode: bigint;
  /** The device number of a backing block device, otherwise 0. */
  backingRdev: number;
}

/** Where {@linkcode Loop.mknod} makes a node. */
export interface MknodOptions {
  /** A descriptor of the directory for the node; without it `/dev`. */
  dirFd?: number | undefined;
  /**
   * Permissions of the node, exact whatever the umask is.
   *
   * @default {0o600}
   */
  mode?: number | undefined;
}

/** A device that is open, on Linux 5.0 to 5.18 busy for a moment: how often to ask again. */
const MAX_AGAIN = 64;

/** The descriptors that a `Loop` has of its device: its own, and that of its lock. */
export let ownDescriptors: (loop: Loop) => number[];

const u64 = new Uint8Array(8);
const u64View = new DataView(u64.buffer);

/**
 * An open loop device. Each method is one ioctl of `linux/loop.h` or
 * `linux/fs.h`, and throws what the kernel says as {@linkcode LoopError}.
 *
 * This is the layer without a net: for attaching files use {@linkcode attach},
 * which chooses a device, verifies it, and detaches without losing data.
 *
 * Closing or disposing closes the descriptor and never detaches by itself (the
 * kernel does, at the last close of a device with `autoclear`). Every property of
 * a device is cleared when it is unbound, and kept by {@linkcode Loop.changeFd}.
 * Requires `--allow-ffi`, and for most of it root.
 *
 * @example Binding a file and looking at the device
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
  /** The path that it was opened by: `/dev/loop3`, or the path of the directory `dirFd` and the name. */
  readonly path: string;
  readonly #readOnly: boolean;
  readonly #rdev: number;
  #fd: number;
  /** A second descriptor, which holds the lock of {@linkcode Loop.lock}. */
  #lock: FileDescriptor | undefined;

  /**
   * Opens `/dev/loop<minor>`, or the node of that name in `dirFd`.
   *
   * The node is examined, and then that very node is opened: it must be a block device
   * with the number that the kernel gives to that loop device. So a FIFO does not hang,
   * and the leftover node of a removed device does not create it anew.
   *
   * @param minor The loop number, 0 to 1048575.
   * @param options How to open it.
   * @throws {UnexpectedDevice} when the node is something else, or the kernel has no
   * such device
   * @throws {LoopError} `ENOENT` without a node, `EACCES` without permission, `ENXIO`
   * while the device is being detached
   * @throws {RangeError} for a number that no loop device can have
   *
   * @example Opening by number
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using loop = new Loop(control.getUnbound(), { readOnly: true });
   * console.log(loop.path);
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
   * Opens a device by name (`loop3`), path (`/dev/loop3`), or any path to a node of
   * a whole loop device.
   *
   * @param path The name or path.
   * @param options How to open it.
   * @returns The open device.
   * @throws {UnexpectedDevice} when the path leads to something else; for a
   * partition the message names its disk
   * @throws {LoopError} as the constructor
   *
   * @example Opening by path
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
   * `LOOP_SET_FD`: binds a backing file, without offset, limit or flags. The device
   * is read-only when the descriptor is. {@linkcode Loop.configure} does this and the
   * rest in one step.
   *
   * A file must not be bound to a device that it leads back to, through however many
   * loop devices; the kernel refuses that with `EBADF`. Two devices over the same
   * bytes of one file corrupt them.
   *
   * @param fd The descriptor of a regular file or block device. It stays yours and
   * may be closed afterwards.
   * @throws {LoopError} `EBUSY` when the device is bound already or held exclusively;
   * `EBADF` for a closed descriptor; `EISDIR`, `EINVAL` for other kinds of files
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.setFd(memory.fd);
   * loop.clearFd();
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
   * `LOOP_CLR_FD`: marks the device for clearing. The kernel detaches when the last
   * descriptor is closed, this one included: call {@linkcode Loop.close} next.
   *
   * From Linux 6.11 on `LOOP_CLR_FD` from the only descriptor throws away what was
   * written and is not in the file yet, also by others. So the node is opened a
   * second time, written back, cleared with both open, and the second closed.
   *
   * @throws {LoopError} `ENXIO` when nothing is bound; `EIO`, `ENOSPC` when writing
   * back failed, after the device was marked
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.setFd(memory.fd);
   * loop.clearFd();
   * loop.close();
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
   * `LOOP_CHANGE_FD`: exchanges the backing file of a read-only device, in use or
   * not, for another of the same size. Offset, limit, flags and reference stay, and
   * the device stays read-only whatever the new descriptor allows. The disk sequence
   * number rises.
   *
   * Partitions of the old file are removed; the kernel looks for those of the new one
   * where `partscan` is on and it can read the table, {@linkcode partitions} everywhere.
   *
   * @param fd The descriptor of the new file. It stays yours and may be closed afterwards.
   * @throws {LoopError} `EINVAL` when the device is not read-only or the size
   * differs; `EBUSY` when a partition is in use; `ENXIO` when nothing is bound; `EBADF`
   * for a closed descriptor or a cycle
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using first = openMemory(4096);
   * using second = openMemory(new Uint8Array(4096).fill(1));
   * using loop = new Loop(control.getUnbound());
   * loop.configure(first.fd, { readOnly: true, autoclear: true });
   * loop.changeFd(second.fd);
   * ```
   */
  changeFd(fd: number): void {
    this.#checkBacking(fd, "LOOP_CHANGE_FD");
    const what = "change the backing file of";
    const change = () =>
      this.#value("LOOP_CHANGE_FD", LOOP_CHANGE_FD, BigInt(fd), what, {
        [EINVAL]: "the device must be read-only and the new file of that size",
        [EBADF]: "the file leads back to this device",
      });
    this.#withoutPartitions(this.#fd, what, change);
  }

  /** Makes a change after which partitions would show other bytes: they are removed first. */
  #withoutPartitions(fd: number, what: string, change: () => void): void {
    const { minor, path } = this;
    // Without sysfs nobody tells which partitions there are.
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
   * `LOOP_SET_CAPACITY`: takes over the present size of the backing file. Call it
   * after the file has grown.
   *
   * @throws {LoopError} `ENXIO` when nothing is bound
   *
   * @example
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
   * `LOOP_SET_DIRECT_IO` (Linux 4.4): bypasses the page cache of the backing file, or
   * uses it again. Takes some 16 ms when it changes.
   *
   * @param enable `true` when left out.
   * @throws {LoopError} `EINVAL` when direct I/O is not possible: the file system has
   * none, or offset or block size do not fit its blocks; `ENXIO` when nothing is bound
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * loop.setDirectIo(false);
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
          "the backing file has no direct I/O, or offset or block size are not multiples of its block size",
      },
    );
  }

  /**
   * `LOOP_SET_BLOCK_SIZE` (Linux 4.14): sets the logical block size. Cached pages are
   * written back first. A device that somebody holds exclusively (mounted, swap,
   * device-mapper) is refused: a file system would break.
   *
   * @param bytes A power of two from 512 to the page size, to 65536 from Linux 6.15
   * on.
   * @throws {RangeError} for any other size
   * @throws {LoopError} `EBUSY` when the device is mounted or held exclusively;
   * `ENXIO` when nothing is bound
   *
   * @example
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
   * `LOOP_CONFIGURE` (Linux 5.8): binds a backing file with all properties in one
   * step, in some microseconds. `LOOP_SET_FD` and `LOOP_SET_STATUS64` need 16 ms, and
   * others may see the device half configured in between.
   *
   * @param fd The descriptor of a regular file or block device. It stays yours and
   * may be closed afterwards.
   * @param options What to set.
   * @throws {LoopError} `EBUSY` when the device is bound already or held exclusively;
   * `EBADF` for a closed descriptor, or a file that leads back to this device;
   * `EISDIR`, `EINVAL` for other kinds of files; `EINVAL` before Linux 5.8, where
   * {@linkcode Loop.setFd} and {@linkcode Loop.setStatus} remain
   * @throws {TypeError} for `readOnly: false` on a device opened `readOnly`
   * @throws {RangeError} for a bad offset, limit, block size or reference
   *
   * @example
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
        }: it was opened with readOnly`,
      );
    }
    this.#checkBacking(fd, "LOOP_CONFIGURE");
    config.fd = fd;
    bind(this, config, `descriptor ${fd}`);
    try {
      fitPageCache(this, this.getBlockSize());
    } catch (error) {
      this.clearFd(); // ours beyond doubt: this descriptor has been open since
      throw error;
    }
  }

  /**
   * `LOOP_GET_STATUS64`: the structure as the kernel gives it, with every value exact.
   *
   * @returns A copy of the structure.
   * @throws {LoopError} `ENXIO` when nothing is bound
   *
   * @example
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
    const info = new LoopInfo64();
    unwrap(
      ioctlPointer(
        this.#open("LOOP_GET_STATUS64"),
        LOOP_GET_STATUS64,
        info.bytes,
      ),
      this.#failure("LOOP_GET_STATUS64", "read the status of", NOT_BOUND),
    );
    return info;
  }

  /**
   * `LOOP_GET_STATUS64`, decoded.
   *
   * @returns Plain data; sizes and offsets are bytes.
   * @throws {LoopError} `ENXIO` when nothing is bound
   * @throws {RangeError} for an offset or limit above `Number.MAX_SAFE_INTEGER`, which
   * {@linkcode Loop.getInfo} still gives exactly
   *
   * @example
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
   * `LOOP_SET_STATUS64`: changes a bound device. What is absent or `undefined` stays
   * as it is; `0` and `false` are values and are set. It reads, modifies and writes
   * (about 16 ms), which is not atomic: somebody else's change in between is lost.
   *
   * A change of offset or limit is refused with `EBUSY` when the device is mounted or
   * otherwise held exclusively: the file system would be ruined. With the offset
   * partitions would move to other bytes, so they are removed.
   *
   * @param changes What to change.
   * @throws {LoopError} `ENXIO` when nothing is bound; `EBUSY` as above, and from
   * Linux 6.19 on for every change of a mounted device
   * @throws {TypeError} for `partscan: false` on a device that has it, which the kernel
   * would ignore in silence
   * @throws {RangeError} for a bad offset, limit or reference
   *
   * @example
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
          "from Linux 6.19 on that is refused while the disk or a partition is mounted or held exclusively",
      }),
    );
  }

  /**
   * `BLKGETSIZE64`: the size of the device in bytes; 0 when nothing is bound.
   *
   * @returns Bytes.
   * @throws {RangeError} for a size above `Number.MAX_SAFE_INTEGER`
   *
   * @example
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
   * `BLKSSZGET`: the logical block size in bytes.
   *
   * @returns Bytes.
   * @example
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
   * `BLKGETDISKSEQ` (Linux 5.15): a number that rises whenever a file is bound,
   * exchanged or unbound. Two equal numbers mean the same binding.
   *
   * @returns The number.
   * @throws {LoopError} `EINVAL` before Linux 5.15
   *
   * @example
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
   * `BLKROGET`: whether the device cannot be written, because it was bound read-only
   * or was made so by `blockdev --setro`.
   *
   * @returns Whether writing is refused.
   * @example
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
   * `pread`: reads bytes of the device through the page cache. `Deno.open` would want
   * `--allow-all` for a device. {@linkcode Attachment.read} does it off the event loop.
   *
   * @param buffer Where the bytes go; as many are read as it has room for.
   * @param position Where to begin, in bytes.
   * @returns How many bytes were read: fewer than asked for only at the end of the device.
   * @throws {LoopError} `EIO` when the backing file cannot be read
   * @throws {RangeError} for a negative or fractional position
   *
   * @example The first sector
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
   * `pwrite`: writes bytes to the device through the page cache. They are in the backing
   * file after {@linkcode Loop.sync}, or when the device is detached.
   *
   * @param bytes What is written.
   * @param position Where to begin, in bytes.
   * @returns How many bytes were written: fewer than given only at the end of the device.
   * @throws {LoopError} `ENOSPC` past the end of the device; `EPERM`, `EBADF` when it is
   * read-only, or was opened so
   * @throws {RangeError} for a negative or fractional position
   *
   * @example Writing a sector
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
   * `fsync`: writes back what was written through the device, into the backing file
   * and onto its disk.
   *
   * @throws {LoopError} `EIO`, `ENOSPC` when that fails
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * loop.write(new Uint8Array(512).fill(1), 0);
   * loop.sync();
   * ```
   */
  sync(): void {
    unwrap(
      fsync(this.#open("fsync")),
      this.#failure("fsync", "write back"),
    );
  }

  /**
   * `BLKFLSBUF`: writes back and drops the cached pages, so that the next reader sees
   * what was written to the backing file directly. Requires `CAP_SYS_ADMIN`.
   *
   * @throws {LoopError} `EACCES` without the capability
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openMemory } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using memory = openMemory(4096);
   * using loop = new Loop(control.getUnbound());
   * loop.configure(memory.fd, { autoclear: true });
   * loop.flushBuffers();
   * ```
   */
  flushBuffers(): void {
    this.#value("BLKFLSBUF", BLKFLSBUF, 0n, "flush the buffers of");
  }

  /**
   * `flock` on a second descriptor of the device: udev leaves a device alone that is
   * locked exclusively. Held until {@linkcode Loop.unlock} or {@linkcode Loop.close};
   * locking again changes the mode. It does not wait.
   *
   * @param mode `"exclusive"` keeps udev away; `"shared"` is what udev takes itself.
   * @returns `false` when somebody else holds a lock that excludes this one.
   *
   * @example
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using loop = new Loop(control.getUnbound());
   * if (loop.lock("exclusive")) loop.unlock();
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
    // A lock that was held before is lost by a failed change of its mode.
    this.#lock = undefined;
    lock.close();
    if (result === -EAGAIN) return false;
    unwrap(result, this.#failure("flock", "lock"));
    return false;
  }

  /**
   * Gives back the lock of {@linkcode Loop.lock}, by closing its descriptor: udev
   * looks at the device again. Without a lock it does nothing.
   *
   * @example
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * using loop = new Loop(control.getUnbound());
   * loop.lock("shared");
   * loop.unlock();
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
   * Makes a second node of this device, with its name, in another directory. A node
   * that is left behind gives access to whatever is bound to that number later: remove
   * it when it is not needed any more. Requires `CAP_MKNOD`.
   *
   * In a directory that others may write to, only the node that was made here gets the
   * mode; where they exchange it meanwhile, that is an error.
   *
   * @param options Where, and with which permissions.
   * @throws {LoopError} `EEXIST` when the name is taken, `EPERM` without the
   * capability
   *
   * @example
   * ```ts
   * import { Loop, LoopControl, openDirectory } from "@loopdev/loopdev";
   *
   * const path = await Deno.makeTempDir();
   * using control = new LoopControl();
   * using directory = openDirectory(path);
   * using loop = new Loop(control.getUnbound());
   * loop.mknod({ dirFd: directory.fd, mode: 0o660 });
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
   * Closes the descriptor, and with it the lock. Doing it again does nothing. It never
   * detaches by itself; the kernel does when this was the last descriptor and
   * `autoclear` is set.
   *
   * @example
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

  /** The same as {@linkcode Loop.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The descriptor, if it is open. */
  #open(operation: string): number {
    if (this.#fd !== -1) return this.#fd;
    throw new LoopError(`Cannot use ${quote(this.path)}`, {
      errno: EBADF,
      operation,
      path: this.path,
      hint: "it is closed",
    });
  }

  /** A descriptor that nobody can mount beside: the kernel refuses it when the disk or a partition is in use. */
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

  /** A number that a `number` holds exactly. */
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
 * `LOOP_GET_STATUS64` as `Loop.getInfo()`, valid until the next call: to make a structure
 * takes longer than to fill one.
 */
export function currentInfo(loop: Loop): LoopInfo64 {
  const { fd, path } = loop;
  unwrap(
    fd === -1 ? -EBADF : ioctlPointer(fd, LOOP_GET_STATUS64, status.bytes),
    () => ({
      action: `Cannot read the status of ${quote(path)}`,
      operation: "LOOP_GET_STATUS64",
      path,
      hint: { ...NOT_BOUND, [EBADF]: "it is closed" },
    }),
  );
  return status;
}

/** One of the `BLK*GET*`: a number of 32 or 64 bits. */
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

/** The size of an open device in bytes, exactly. */
export function exactSize(loop: Loop): bigint {
  return readNumber(loop, "BLKGETSIZE64", BLKGETSIZE64);
}

/**
 * Has the page cache of a device use blocks that are no smaller than its logical ones.
 * It chose their size when the device was opened, at most a page; from Linux 6.15 on a
 * logical block may be larger, and all that is written would fail with `EIO`.
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

/** The block size of the page cache of an open device, in bytes. */
export function pageCacheBlockSize(loop: Loop): number {
  return Number(readNumber(loop, "BLKBSZGET", BLKBSZGET));
}

/** Another open file description of the same device, whatever its path leads to by now. */
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

/** What it means when a file cannot be bound. */
const BINDING_HINTS: Record<number, string> = {
  [EBUSY]: "it is attached already or held exclusively",
  [EBADF]: "the file leads back to this device",
  // Some kernels want `write_iter` of the file whenever the device was opened for
  // writing; iso9660 has none.
  [EINVAL]:
    "the file is a loop device without a backing file, or its file system cannot back a loop device; Linux 6.12.29, 6.14.7 and 6.15 bind files of some read-only file systems, as iso9660, only to a device that was opened with readOnly",
};

/** Binds a file to a device that is open: `LOOP_CONFIGURE`. */
export function bind(loop: Loop, config: LoopConfig, file: string): void {
  const result = ioctlPointer(loop.fd, LOOP_CONFIGURE, config.bytes);
  if (result >= 0) return;
  const errno = -result;
  throw new LoopError(`Cannot attach ${file} to ${quote(loop.path)}`, {
    errno,
    operation: "LOOP_CONFIGURE",
    path: loop.path,
    hint: canConfigure(loop, errno)
      ? BINDING_HINTS[errno]
      : "this kernel has no LOOP_CONFIGURE (Linux 5.8); setFd() and setStatus() remain",
  });
}

/** Whether the kernel knows `LOOP_CONFIGURE`, which has failed with that error. */
function canConfigure(loop: Loop, errno: number): boolean {
  const unknown = [EINVAL, ENOTTY, ENOSYS];
  return !unknown.includes(errno) || !unknown.includes(-configureNothing(loop));
}

/** The answer to `LOOP_CONFIGURE` with a descriptor that is none: `-EBADF` where the kernel knows it. Nothing is changed. */
export function configureNothing(loop: Loop): number {
  const nothing = new LoopConfig();
  nothing.fd = 0xffffffff; // -1, as the structure has it
  return ioctlPointer(loop.fd, LOOP_CONFIGURE, nothing.bytes);
}

/** Calls until the answer is not `EAGAIN`, which Linux 5.0 to 5.18 gives while others read the device. */
function repeatWhileAgain(call: () => number, fd: number): number {
  let result = call();
  for (let tries = 1; result === -EAGAIN && tries < MAX_AGAIN; tries++) {
    fsync(fd);
    result = call();
  }
  return result;
}

/** Opens the node that the caller of the constructor means. */
function openNodeOf(minor: number, options: LoopOptions): OpenedNode {
  checkOptions(options, ["dirFd", "readOnly"]);
  const name = `loop${checkMinor(minor)}`;
  const readOnly = checkBoolean(options.readOnly, "readOnly") ?? false;
  const dirFd = options.dirFd === undefined
    ? AT_FDCWD
    : checkDescriptor(options.dirFd, "dirFd");
  return openLoopNode(minor, placeIn(dirFd, name), readOnly);
}

/** Opens the whole loop device that a node stands for. */
export function openNode(
  node: FilePath,
  { readOnly = false }: LoopOpenOptions,
): Loop {
  using found = findNode(node);
  const minor = minorOfStat(node.text, found.stat);
  return new Loop(minor, openFoundNode(minor, found, { node, readOnly }));
}
