/** Directories in which device nodes are created for other programs. */
import {
  AT_STATX_DONT_SYNC,
  AT_SYMLINK_NOFOLLOW,
  isBlockDevice,
  S_IFBLK,
  type Stat,
  statAt,
  statOf,
} from "../sys/stat.ts";
import type { FilePath } from "../arguments.ts";
import { LoopError, quote, unwrap } from "../errors.ts";
import { FileDescriptor, unwrapFound, unwrapStat } from "./file_descriptor.ts";
import { FoundFile } from "./found_file.ts";
import { makeNode, removeNode } from "./made_node.ts";
import { ownMounts } from "./mounts.ts";
import { removeAllNodes } from "./left_nodes.ts";
import {
  makePrivateDirectory,
  PARENTS,
  type PrivateDirectory,
} from "./nodes.ts";
import { EBADF, EINVAL, ENOENT, ESTALE } from "../sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  openAt,
  removeDirectoryAt,
} from "../sys/libc.ts";
import { readLink } from "../sys/sysfs.ts";

/** State that an attachment shares with what shows its partitions. */
export interface NodeOwner {
  /** The directory for nodes of the device, if `/dev` has none. */
  nodes: NodeDirectory | undefined;
  /** `true` once the nodes are being removed: none may be created. */
  isDetached: boolean;
  /** `true` once there may be partitions that were added without the kernel's scan. */
  hasPartitions: boolean;
}

/**
 * A directory in which nodes are created for other programs, and removed again. It is
 * held by its descriptor, so that moving it cannot redirect us.
 */
export class NodeDirectory implements Disposable {
  readonly #path: string;
  readonly #isPrivate: boolean;
  readonly #identity: Stat;
  #descriptor: FileDescriptor | undefined;
  readonly #made = new Map<string, Stat>();
  #isRemoved = false;

  private constructor(
    path: string,
    descriptor: FileDescriptor,
    isPrivate: boolean,
  ) {
    const action = `Cannot create nodes in ${quote(path)}`;
    this.#identity = unwrapStat(statOf(descriptor.fd), action, path);
    this.#path = absolute(path).replace(/\/+$/, "");
    this.#descriptor = descriptor;
    this.#isPrivate = isPrivate;
  }

  /**
   * Opens a directory of the caller.
   *
   * @throws {LoopError} If it cannot be opened (`ENOENT`, `ENOTDIR` …), or is on a
   * devtmpfs (`EINVAL`), where nodes belong to the kernel and udev.
   * @throws {TypeError} If its name is not UTF-8, because the paths of nodes are text.
   */
  static open({ text, bytes }: FilePath): NodeDirectory {
    const action = `Cannot create nodes in ${quote(text)}`;
    const encoded = cString(text);
    const isText = encoded.length === bytes.length &&
      encoded.every((byte, index) => byte === bytes[index]);
    if (!isText) throw new TypeError(`${action}: its name must be UTF-8`);
    const fd = unwrap(openAt(AT_FDCWD, bytes, O_PATH | O_DIRECTORY), () => ({
      action,
      operation: "open",
      path: text,
    }));
    const descriptor = new FileDescriptor(fd);
    try {
      const directory = new NodeDirectory(text, descriptor, false);
      if (!isDevtmpfs(directory.#identity.device)) return directory;
      throw new LoopError(action, {
        errno: EINVAL,
        operation: "stat",
        path: text,
        hint: "it is on a devtmpfs, where the kernel creates the nodes itself",
      });
    } catch (error) {
      descriptor.close();
      throw error;
    }
  }

  /**
   * Creates a directory for the nodes of one device, with its node, in a place where
   * that node can be opened. It is removed together with the nodes.
   */
  static makePrivate(name: string, rdev: number): NodeDirectory {
    let failure: unknown;
    for (const parent of PARENTS) {
      const made = makePrivateDirectory(parent, "loopdev-");
      if (made === undefined) continue;
      using unfinished = new DisposableStack();
      unfinished.defer(() => {
        removeDirectoryAt(AT_FDCWD, cString(made.path));
      });
      unfinished.use(made.descriptor);
      try {
        const directory = unfinished.use(
          new NodeDirectory(made.path, made.descriptor, true),
        );
        directory.add(name, rdev);
        checkOpens(directory.#open(), directory.#node(name));
        unfinished.move();
        return directory;
      } catch (error) {
        if (!(error instanceof LoopError)) throw error;
        failure = error; // EACCES: mounted with the option nodev
      }
    }
    throw failure ?? new LoopError(`Cannot create a node of ${name}`, {
      errno: ENOENT,
      operation: "mkdir",
      path: `/dev/${name}`,
      hint: `/dev has none, and no directory for one can be created in ${
        PARENTS.join(", ")
      }`,
    });
  }

  /** Uses a private directory that another process of this user has created. */
  static share({ path, descriptor }: PrivateDirectory): NodeDirectory {
    return new NodeDirectory(path, descriptor, true);
  }

  /** Returns the path of a node in this directory. */
  pathOf(name: string): string {
    return `${this.#path}/${name}`;
  }

  /** Creates a node, or uses an existing node of that device as it is. */
  add(name: string, rdev: number): void {
    const directory = this.#open();
    const node = this.#node(name);
    const found = () =>
      statAt(
        directory,
        node.bytes,
        AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC,
      );
    const isThere = (stat: Stat | number) =>
      typeof stat !== "number" && isNodeOf(stat, rdev);
    const there = found();
    if (isThere(there)) return;
    const made = this.#made.get(name);
    if (made !== undefined) this.#remove(directory, name, made);
    // In a private directory, all nodes are those of this program.
    else if (this.#isPrivate && typeof there !== "number") {
      this.#remove(directory, name, there);
    }
    try {
      this.#made.set(
        name,
        makeNode(directory, node, S_IFBLK | 0o600, rdev),
      );
    } catch (error) {
      if (!isThere(found())) throw error; // another process has just created it
    }
  }

  /**
   * Opens the node of that name for reading. Returns a descriptor, or a negative error
   * number as {@linkcode openDevNode} does.
   */
  openNode(name: string, rdev: number): number {
    const { bytes } = this.#node(name);
    return openNode(FoundFile.findName(this.#open(), bytes), rdev);
  }

  /**
   * Removes the nodes created here, unless something else has replaced them, and closes
   * the directory. Returns the error of a node that could not be removed; the next call
   * tries it again.
   */
  removeAll(): LoopError | undefined {
    let failure: LoopError | undefined;
    try {
      using directory = this.#takeBack();
      if (directory === undefined) return undefined;
      for (const [name, made] of this.#made) {
        try {
          this.#remove(directory.fd, name, made);
        } catch (error) {
          if (!(error instanceof LoopError)) throw error;
          failure ??= error;
        }
      }
      if (failure === undefined) this.#removePrivate(directory.fd);
      return failure;
    } catch (error) {
      if (error instanceof LoopError) return failure ?? error;
      throw error;
    }
  }

  /** Closes the directory, and leaves the nodes. */
  close(): void {
    this.#descriptor?.close();
    this.#descriptor = undefined;
  }

  /** Removes the nodes created here, as far as possible. */
  [Symbol.dispose](): void {
    this.removeAll();
  }

  #node(name: string): FilePath {
    return { text: this.pathOf(name), bytes: cString(name) };
  }

  #open(): number {
    if (this.#descriptor !== undefined) return this.#descriptor.fd;
    throw new LoopError(`Cannot create nodes in ${quote(this.#path)}`, {
      errno: EBADF,
      operation: "mknod",
      path: this.#path,
      hint: "the device was detached",
    });
  }

  #remove(directory: number, name: string, made: Stat): void {
    const path = this.pathOf(name);
    unwrap(removeNode(directory, cString(name), made), () => ({
      action: `Cannot remove node ${quote(path)}`,
      operation: "unlink",
      path,
      hint: "it gives access to later devices of that number; remove it",
    }));
    this.#made.delete(name);
  }

  #removePrivate(directory: number): void {
    if (!this.#isPrivate) return;
    // Other processes have added nodes of partitions, or replaced those that were stale.
    removeAllNodes(directory);
    const result = removeDirectoryAt(AT_FDCWD, cString(this.#path));
    unwrap(result === -ENOENT ? 0 : result, () => ({
      action: `Cannot remove ${quote(this.#path)}`,
      operation: "rmdir",
      path: this.#path,
    }));
    this.#isRemoved = true;
  }

  /**
   * Returns the directory to remove nodes from, or `undefined` if there is nothing to
   * remove or it no longer exists.
   */
  #takeBack(): FileDescriptor | undefined {
    const held = this.#descriptor;
    this.#descriptor = undefined;
    if (held !== undefined) return held;
    const isDone = this.#isPrivate ? this.#isRemoved : this.#made.size === 0;
    if (isDone) return undefined;
    const path = this.#path;
    const failure = {
      action: `Cannot remove the nodes in ${quote(path)}`,
      operation: "open",
      path,
      hint: { [ESTALE]: "another directory has its name now" },
    };
    const fd = openAt(AT_FDCWD, cString(path), O_PATH | O_DIRECTORY);
    if (fd === -ENOENT) return undefined;
    const directory = new FileDescriptor(unwrap(fd, () => failure));
    const stat = statOf(fd);
    const isSame = typeof stat !== "number" &&
      stat.device === this.#identity.device &&
      stat.inode === this.#identity.inode;
    if (!isSame) {
      directory.close();
      unwrap(typeof stat === "number" ? stat : -ESTALE, () => failure);
    }
    return directory;
  }
}

function isNodeOf(stat: Stat, rdev: number): boolean {
  return isBlockDevice(stat) && stat.rdev === rdev;
}

/** Opens a node if it is one of that device. */
function openNode(found: FoundFile | number, rdev: number): number {
  if (typeof found === "number") return found;
  using node = found;
  return isNodeOf(node.stat, rdev) ? node.open(O_RDONLY) : -ENOENT;
}

/**
 * Opens the node that a device should have in `/dev` for reading. Returns a descriptor
 * or a negative error number, which is `-ENOENT` also if the node is one of another
 * device.
 */
export function openDevNode(name: string, rdev: number): number {
  return openNode(FoundFile.find(AT_FDCWD, cString(`/dev/${name}`)), rdev);
}

/**
 * Returns `true` if the node that a device should have in `/dev` exists and can be
 * opened.
 */
export function hasNode(name: string, rdev: number): boolean {
  const fd = openDevNode(name, rdev);
  if (fd >= 0) new FileDescriptor(fd).close();
  return fd >= 0;
}

/** Throws if a node cannot be opened, as on a mount with the option nodev (`EACCES`). */
function checkOpens(directory: number, { text, bytes }: FilePath): void {
  const failure = {
    action: `Cannot open ${quote(text)}`,
    operation: "open",
    path: text,
  };
  using found = unwrapFound(
    FoundFile.findName(directory, bytes),
    () => failure,
  );
  new FileDescriptor(unwrap(found.open(O_RDONLY), () => failure)).close();
}

/**
 * Makes a path absolute, because the working directory may change before the path is
 * used.
 */
function absolute(path: string): string {
  if (path.startsWith("/")) return path;
  const directory = readLink("/proc/self/cwd");
  if (typeof directory !== "string") return path;
  if (!directory.includes("\ufffd")) return `${directory}/${path}`;
  throw new TypeError(
    `Cannot create nodes in ${
      quote(path)
    }: the name of the working directory must be UTF-8`,
  );
}

/**
 * Returns `true` if a file system is a devtmpfs. statfs(2) cannot distinguish it from a
 * tmpfs, which has the same magic number.
 */
export function isDevtmpfs(device: number): boolean {
  return ownMounts().some((mount) =>
    mount.device === device && mount.type === "devtmpfs"
  );
}
