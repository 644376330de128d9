/** Device nodes of our own, where `/dev` has none: in a container. */
import type { FilePath } from "../arguments.ts";
import { check, LoopError, quote } from "../errors.ts";
import { checkStat, fileType } from "./file_descriptor.ts";
import {
  type InternalOptions,
  locate,
  Loop,
  type LoopOptions,
  NODE,
} from "./loop.ts";
import {
  CONTROL_DEVICE,
  type InternalControlOptions,
  LoopControl,
} from "./loop_control.ts";
import { deviceNumberOf, hasSysfs } from "./loop_sysfs.ts";
import { ownMounts } from "./mounts.ts";
import { EEXIST, EINVAL, ENOENT, ENOTDIR } from "../sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  mkdirAt,
  mknodAt,
  removeDirectoryAt,
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFMT,
  statAt,
  unlinkAt,
} from "../sys/libc.ts";
import { readLink } from "../sys/sysfs.ts";

/** Opens a device by number; when there is no node of it in `/dev`, through one of our own that is gone afterwards. */
export function openLoop(minor: number, options: LoopOptions): Loop {
  return openAnyNode(minor, options, (options) => new Loop(minor, options));
}

/** The same for a name or path too. By a name or path in `/dev` the device is meant, not the node, which may be missing. */
export function openDevice(
  device: string | number,
  options: LoopOptions,
): Loop {
  if (typeof device === "number") return openLoop(device, options);
  const { minor, node } = locate(device);
  return node === undefined
    ? openLoop(minor, options)
    : Loop.open(device, options);
}

/** The same with a constructor of the caller's. */
export function openAnyNode<T>(
  minor: number,
  options: LoopOptions,
  open: (options: LoopOptions) => T,
): T {
  try {
    return open(options);
  } catch (error) {
    // Without sysfs nobody tells whether the device exists, and a node creates it.
    const number = isMissing(error) && hasSysfs()
      ? deviceNumberOf(minor)
      : undefined;
    if (number === undefined) throw error;
    return throughOwnNode(
      { name: `loop${minor}`, mode: S_IFBLK, number },
      (node) => {
        const internal: InternalOptions = { ...options, [NODE]: node };
        return open(internal);
      },
      error,
    );
  }
}

/** Opens `/dev/loop-control`; when it is missing, through a node of our own that is gone afterwards. */
export function openControl(): LoopControl {
  try {
    return new LoopControl();
  } catch (error) {
    if (!isMissing(error)) throw error;
    return throughOwnNode(
      { name: "loop-control", mode: S_IFCHR, number: CONTROL_DEVICE },
      (node) => {
        const internal: InternalControlOptions = { [NODE]: node };
        return new LoopControl(internal);
      },
      error,
    );
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof LoopError && error.errno === ENOENT &&
    error.operation === "open";
}

/** Where a private directory is tried: some do not allow device nodes. */
const PARENTS = ["/run", "/tmp", "/dev", "/dev/shm"];

/** Opens a node in a directory that exists only for that. When it cannot, `missing` is thrown, which says that there is none in `/dev`. */
function throughOwnNode<T>(
  { name, mode, number }: { name: string; mode: number; number: number },
  open: (node: FilePath) => T,
  missing: unknown,
): T {
  for (const parent of PARENTS) {
    const directory = cString(`${parent}/.loopdev-${crypto.randomUUID()}`);
    if (mkdirAt(AT_FDCWD, directory, 0o700) < 0) continue;
    const path = new TextDecoder().decode(directory.subarray(0, -1));
    const node = { text: `/dev/${name}`, bytes: cString(`${path}/${name}`) };
    try {
      if (mknodAt(AT_FDCWD, node.bytes, mode | 0o600, number) < 0) continue;
      return open(node);
    } catch (error) {
      // EACCES: mounted nodev. The next one, then.
      const isNodev = error instanceof LoopError && error.code === "EACCES";
      if (!isNodev) throw error;
    } finally {
      unlinkAt(AT_FDCWD, node.bytes);
      removeDirectoryAt(AT_FDCWD, directory);
    }
  }
  throw missing;
}

/** A directory in which nodes are made for others, and removed again. */
export class NodeDirectory {
  readonly #path: string;
  readonly #made = new Map<string, number>();

  /**
   * @throws {LoopError} `ENOENT`, `ENOTDIR` …; `EINVAL` on a devtmpfs, where nodes are
   * the kernel's and udev's
   */
  constructor({ text, bytes }: FilePath) {
    const action = `Cannot make nodes in ${quote(text)}`;
    const stat = checkStat(statAt(AT_FDCWD, bytes), action, text);
    if ((stat.mode & S_IFMT) !== S_IFDIR) {
      throw new LoopError(action, {
        errno: ENOTDIR,
        operation: "stat",
        path: text,
        hint: `it is ${fileType(stat.mode)}`,
      });
    }
    if (isDevtmpfs(stat.device)) {
      throw new LoopError(action, {
        errno: EINVAL,
        operation: "stat",
        path: text,
        hint: "it is on a devtmpfs, where the kernel makes the nodes itself",
      });
    }
    if (cString(text).length !== bytes.length) {
      throw new TypeError(`${action}: its name must be UTF-8`);
    }
    this.#path = absolute(text).replace(/\/+$/, "");
  }

  /** The path of a node in this directory. */
  pathOf(name: string): string {
    return `${this.#path}/${name}`;
  }

  /** Makes a node, unless it is there. One of the same device that was left behind is replaced. */
  add(name: string, number: number): void {
    const path = this.pathOf(name);
    const node = cString(path);
    if (this.#made.get(name) === number && isDevice(path, number)) return;
    if (this.#made.has(name) || isDevice(path, number)) this.#remove(name);
    check(mknodAt(AT_FDCWD, node, S_IFBLK | 0o600, number), () => ({
      action: `Cannot make node ${quote(path)}`,
      operation: "mknod",
      path,
      hint: { [EEXIST]: "there is something else of that name" },
    }));
    this.#made.set(name, number);
  }

  /** Removes what was made, where it is still that. */
  removeAll(): void {
    for (const [name, number] of this.#made) {
      if (isDevice(this.pathOf(name), number)) this.#remove(name);
    }
    this.#made.clear();
  }

  #remove(name: string): void {
    unlinkAt(AT_FDCWD, cString(this.pathOf(name)));
    this.#made.delete(name);
  }
}

/** The working directory may be another when the nodes are removed. */
function absolute(path: string): string {
  if (path.startsWith("/")) return path;
  const directory = readLink("/proc/self/cwd");
  return typeof directory === "string" ? `${directory}/${path}` : path;
}

function isDevice(path: string, number: number): boolean {
  const stat = statAt(AT_FDCWD, cString(path));
  return typeof stat !== "number" && (stat.mode & S_IFMT) === S_IFBLK &&
    stat.rdevice === number;
}

/** Whether a file system is a devtmpfs. A tmpfs has the same magic number, so that statfs(2) does not tell. */
function isDevtmpfs(device: number): boolean {
  return ownMounts().some((mount) =>
    mount.device === device && mount.type === "devtmpfs"
  );
}
