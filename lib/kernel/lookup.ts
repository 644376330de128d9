/** Looking at paths that others have chosen, without waiting for their file systems. */
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

/** What is ours to solve when a look-up fails. Everything else means that the path leads nowhere. */
const OURS = [EMFILE, ENFILE, ENOMEM];

/** `openat2(2)` does not know these flags, has nothing in its cache, or is forbidden as a whole. */
const UNDECIDED = [EAGAIN, EINVAL, ENOSYS, EPERM];

/** Whether a failure is ours: no descriptors, no memory. */
export function isOurs(errno: number): boolean {
  return OURS.includes(errno);
}

/**
 * Looks at paths of files that loop devices are attached to. A file system whose server
 * does not answer (NFS, FUSE) would stop whoever looks there, and no signal ends that.
 *
 * The kernel says from its cache what a path leads to, where it can. Otherwise the path
 * is walked only on file systems of this machine, and on the one that was asked about.
 * The table of mounts is read when it is needed first, and is good for one call.
 */
export class Lookup {
  /** The device number of the file system that is asked about. */
  readonly #wanted: number | undefined;
  #mounts: MountTable | undefined;

  /** `wanted` is a file system that the caller has waited for already. */
  constructor(wanted?: number) {
    this.#wanted = wanted;
  }

  /**
   * What a path without symbolic links leads to; `undefined` when that is nothing, or
   * cannot be told without waiting.
   *
   * @throws {LoopError} when there are no descriptors or no memory
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
   * Whether to ask a device for its file, of that path, can mean to wait for a server.
   * Where the file is not to be seen, the name says where it was; but there may be servers
   * out of sight, unmounted lazily or in a mount namespace of their own.
   */
  canHang(path: CString): boolean {
    if (startsWith(path, MEMORY)) return false;
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
    return this.#mounts ??= readMounts();
  }
}

/** How the kernel names files in memory. */
const MEMORY = new TextEncoder().encode("/memfd:");

function startsWith(path: CString, prefix: Uint8Array): boolean {
  return prefix.every((byte, index) => path[index] === byte);
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
  // A symbolic link could lead to another file system than the path says.
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
  /** Whether its files are on this machine: nobody has to answer. */
  readonly isLocal: boolean;
}

/** What is mounted where. */
class MountTable {
  readonly #byTarget: Map<string, Mounted>;
  /** What is taken to be mounted where nothing is known. */
  readonly #otherwise: Mounted | undefined;

  constructor(byTarget: Map<string, Mounted>, otherwise?: Mounted) {
    this.#byTarget = byTarget;
    this.#otherwise = otherwise;
  }

  /** The mount that holds a path; `undefined` when nothing is known of it. */
  of(path: CString): Mounted | undefined {
    let text = latin1.decode(path.subarray(0, path.length - 1));
    while (text !== "") {
      const mount = this.#byTarget.get(text);
      if (mount !== undefined) return mount;
      text = text.slice(0, text.lastIndexOf("/"));
    }
    return this.#byTarget.get("/") ?? this.#otherwise;
  }

  /** Whether there are FUSE servers that are mounted nowhere here, but for one that is known. */
  hasHiddenServers(known: number | undefined): boolean {
    const names = listDirectory("/sys/fs/fuse/connections");
    if (typeof names === "number") return false; // no FUSE; empty when nobody mounted fusectl
    const seen = new Set<number | undefined>([known]);
    for (const { device } of this.#byTarget.values()) seen.add(device);
    return names.some((name) => {
      const number = Number(name); // major and minor, of 12 and 20 bits
      return !seen.has(makedev(number >>> 20, number & 0xfffff));
    });
  }
}

/** Every byte is a character of its own. */
const latin1 = new TextDecoder("latin1");

/** File systems of this machine that have no block device: `/proc/filesystems` calls them `nodev`. */
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

/** File systems with a block device that wait for others nevertheless: a program, or a cluster. */
const WAITING_TYPES = ["fuseblk", "gfs2", "ocfs2"];

/** The types of file systems that wait for nobody. */
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

function readMounts(): MountTable {
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
    }
  } catch (error) {
    if (!(error instanceof LoopError) || isOurs(error.errno)) throw error;
    return new MountTable(new Map()); // no /proc: nothing is known
  }
  return count < MAX_MOUNTS
    ? new MountTable(byTarget)
    : new MountTable(new Map(), { device: 0, isLocal: false });
}
