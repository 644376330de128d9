/** Examines paths chosen by other users, without waiting for their file systems. */
import {
  AT_STATX_DONT_SYNC,
  makedev,
  type Stat,
  statAt,
  statOf,
} from "../sys/stat.ts";
import { LoopError } from "../errors.ts";
import { MAX_MOUNTS, ownMounts } from "./mounts.ts";
import {
  EAGAIN,
  EINVAL,
  EMFILE,
  ENFILE,
  ENOMEM,
  ENOSYS,
  EPERM,
} from "../sys/errno.ts";
import {
  AT_FDCWD,
  close,
  type CString,
  O_PATH,
  openAt2,
  RESOLVE_CACHED,
  RESOLVE_NO_SYMLINKS,
} from "../sys/libc.ts";
import { listDirectory, readWhole } from "../sys/sysfs.ts";
import type { Slices } from "../waiting.ts";

/**
 * Errors of a lookup that this process has to solve. All others mean that the path
 * leads nowhere.
 */
const OURS = [EMFILE, ENFILE, ENOMEM];

/**
 * Errors of `openat2(2)` that decide nothing: unknown flags, nothing in its cache, or a
 * forbidden system call.
 */
const UNDECIDED = [EAGAIN, EINVAL, ENOSYS, EPERM];

/** Returns `true` if a lookup failed for lack of descriptors or memory. */
export function isOurs(errno: number): boolean {
  return OURS.includes(errno);
}

/**
 * Examines the backing paths of loop devices. A file system whose server does not
 * answer (NFS, FUSE) would block the caller, and no signal interrupts that.
 *
 * If possible, the kernel resolves the path from its cache. Otherwise the path is
 * walked only if it is on a local file system, or on the one the caller asked about.
 * The table of mounts is read on first use and serves one call.
 */
export class Lookup {
  /** Device number of the file system the caller asked about. */
  readonly #wanted: number | undefined;
  #mounts: MountTable | undefined;

  /** `wanted` is a file system that the caller has already waited for. */
  constructor(wanted?: number) {
    this.#wanted = wanted;
  }

  /**
   * Reads the table of mounts before its first use, and lets the event loop run in
   * between: it can have tens of thousands of lines.
   *
   * @throws {LoopError} If no descriptors or memory are left.
   */
  async prepare(slices: Slices): Promise<void> {
    const reading = readMounts();
    for (;;) {
      const { done, value } = reading.next();
      if (done) {
        this.#mounts = value;
        return;
      }
      if (slices.isTired) await slices.breathe();
    }
  }

  /**
   * Examines the target of a path without symbolic links. Returns `undefined` if there
   * is none, or if finding out could mean waiting.
   *
   * @throws {LoopError} If no descriptors or memory are left.
   */
  examine(path: CString): Stat | undefined {
    const fd = openAt2(
      AT_FDCWD,
      path,
      O_PATH,
      RESOLVE_CACHED | RESOLVE_NO_SYMLINKS,
    );
    if (fd >= 0) {
      const stat = statOf(fd, AT_STATX_DONT_SYNC);
      close(fd);
      return found(stat);
    }
    if (!UNDECIDED.includes(-fd)) return found(fd);
    return this.#isRemote(path) ? undefined : found(walk(path));
  }

  /**
   * Returns `true` if asking a device for its backing file could mean waiting for a
   * server. If the file is not visible, its path only says where it was: the server may
   * be in another mount namespace, or unmounted lazily.
   */
  canHang(path: CString): boolean {
    if (isMemory(path)) return false;
    if (this.#isRemote(path)) return true;
    return this.examine(path) === undefined &&
      this.#table.hasHiddenServers(this.#wanted);
  }

  #isRemote(path: CString): boolean {
    const mount = this.#table.of(path);
    return mount !== undefined && !mount.isLocal &&
      mount.device !== this.#wanted;
  }

  get #table(): MountTable {
    return this.#mounts ??= resultOf(readMounts());
  }
}

/** Prefix that the kernel gives to files in memory. */
const MEMORY = new TextEncoder().encode("/memfd:");

/** Returns `true` for the path of a file in memory, as the kernel reports it. */
export function isMemory(path: CString): boolean {
  return MEMORY.every((byte, index) => path[index] === byte);
}

function found(result: Stat | number): Stat | undefined {
  if (typeof result !== "number") return result;
  if (!isOurs(-result)) return undefined;
  throw new LoopError("Cannot examine the file of a loop device", {
    errno: -result,
    operation: "open",
  });
}

function walk(path: CString): Stat | number {
  // A symbolic link could lead to another file system than the path suggests.
  const fd = openAt2(AT_FDCWD, path, O_PATH, RESOLVE_NO_SYMLINKS);
  if (fd < 0) {
    return fd === -ENOSYS || fd === -EPERM // before Linux 5.6, and in containers
      ? statAt(AT_FDCWD, path, AT_STATX_DONT_SYNC)
      : fd;
  }
  const stat = statOf(fd, AT_STATX_DONT_SYNC);
  close(fd);
  return stat;
}

interface Mounted {
  readonly device: number;
  /** `true` if the files are on this machine, so that no server has to answer. */
  readonly isLocal: boolean;
}

/** The mounts of this process by mount point. */
class MountTable {
  readonly #byTarget: Map<string, Mounted>;
  /** Mount assumed for paths if the table cannot be read. */
  readonly #otherwise: Mounted | undefined;

  constructor(byTarget: Map<string, Mounted>, otherwise?: Mounted) {
    this.#byTarget = byTarget;
    this.#otherwise = otherwise;
  }

  /** Returns the mount that holds a path, or `undefined` if that is unknown. */
  of(path: CString): Mounted | undefined {
    let text = latin1.decode(path.subarray(0, path.length - 1));
    while (text !== "") {
      const mount = this.#byTarget.get(text);
      if (mount !== undefined) return mount;
      text = text.slice(0, text.lastIndexOf("/"));
    }
    return this.#byTarget.get("/") ?? this.#otherwise;
  }

  /**
   * Returns `true` if there are FUSE servers that are not mounted here, other than the
   * given one.
   */
  hasHiddenServers(known: number | undefined): boolean {
    const names = listDirectory("/sys/fs/fuse/connections");
    if (typeof names === "number") return false; // no FUSE; empty if fusectl is not mounted
    const seen = new Set<number | undefined>([known]);
    for (const { device } of this.#byTarget.values()) seen.add(device);
    return names.some((name) => {
      const number = Number(name); // major and minor number, of 12 and 20 bits
      return !seen.has(makedev(number >>> 20, number & 0xfffff));
    });
  }
}

/** Decodes each byte as one character. */
const latin1 = new TextDecoder("latin1");

/** Local file systems without a block device, which `/proc/filesystems` calls `nodev`. */
const LOCAL_TYPES = [
  "bcachefs",
  "devtmpfs",
  "erofs",
  "hugetlbfs",
  "overlay",
  "proc",
  "ramfs",
  "rootfs",
  "sysfs",
  "tmpfs",
  "ubifs",
  "zfs",
];

/** File systems with a block device that nevertheless wait for a program or a cluster. */
const WAITING_TYPES = ["fuseblk", "gfs2", "ocfs2"];

/** Returns the types of file systems that never wait for a server. */
function localTypes(): Set<string> {
  const types = new Set(LOCAL_TYPES);
  const text = readWhole("/proc/filesystems");
  if (typeof text === "number") return types;
  for (const line of text.split("\n")) {
    if (line.startsWith("\t")) types.add(line.slice(1));
  }
  for (const type of WAITING_TYPES) types.delete(type);
  return types;
}

/** Reads the mounts of this process, and yields after each one. */
function* readMounts(): Generator<undefined, MountTable> {
  const local = localTypes();
  const byTarget = new Map<string, Mounted>();
  let count = 0;
  try {
    // A later mount on the same directory hides the earlier one.
    for (const mount of ownMounts()) {
      byTarget.set(latin1.decode(mount.targetBytes), {
        device: mount.device,
        isLocal: local.has(mount.type),
      });
      count++;
      yield undefined;
    }
  } catch (error) {
    if (!(error instanceof LoopError) || isOurs(error.errno)) throw error;
    return new MountTable(new Map()); // without /proc, nothing is known
  }
  return count < MAX_MOUNTS
    ? new MountTable(byTarget)
    : new MountTable(new Map(), { device: 0, isLocal: false });
}

/** Runs a generator to its end, and returns the result. */
function resultOf<T>(generator: Generator<undefined, T>): T {
  for (;;) {
    const { done, value } = generator.next();
    if (done) return value;
  }
}
