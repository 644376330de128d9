/**
 * Mounts on directories. They are identified by number, because other processes may mount
 * on the same directory.
 */
import type { FilePath } from "../arguments.ts";
import { LoopError, printable, quote, unwrap } from "../errors.ts";
import { FileDescriptor } from "../kernel/file_descriptor.ts";
import { pathOf } from "../kernel/found_file.ts";
import { ownMounts } from "../kernel/mounts.ts";
import { EAGAIN, EBUSY, EINVAL, ENOENT } from "../sys/errno.ts";
import {
  AT_FDCWD,
  type CString,
  cString,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  openAt,
  terminated,
  tryLock,
} from "../sys/libc.ts";
import { moveMount, umount, umountAsync } from "../sys/mount_calls.ts";
import {
  AT_SYMLINK_NOFOLLOW,
  mountAt,
  type MountIdentity,
  mountNumberAt,
  mountOf,
} from "../sys/stat.ts";
import { readLinkBytes } from "../sys/sysfs.ts";
import { BRIEF_USE, pollUntil, Slices } from "../waiting.ts";
import { openRoot, writeBackFileSystem } from "./syncfs.ts";

const decoder = new TextDecoder();

/** A directory to mount on, held open by a descriptor. */
export class Target implements Disposable {
  /** Canonical path, if the kernel reports one. */
  readonly path: FilePath;
  readonly #descriptor: FileDescriptor;

  /** Opens the directory. */
  constructor(target: FilePath, verb = "mount on") {
    const fd = openAt(AT_FDCWD, target.bytes, O_PATH | O_DIRECTORY);
    this.#descriptor = new FileDescriptor(
      unwrap(fd, () => ({
        action: `Cannot ${verb} ${quote(target.text)}`,
        operation: "open",
        path: target.text,
        hint: { [ENOENT]: "the directory must exist" },
      })),
    );
    this.path = canonical(fd) ?? target;
  }

  /** The descriptor of the directory. */
  get fd(): number {
    return this.#descriptor.fd;
  }

  /** Attaches a mount on top of others on the same directory. */
  attach(mount: number, source: string): void {
    const { text } = this.path;
    unwrap(moveMount(mount, this.#descriptor.fd), () => ({
      action: `Cannot mount ${quote(source)} on ${quote(text)}`,
      operation: "move_mount",
      path: text,
      hint: { [ENOENT]: "the directory was removed meanwhile" },
    }));
  }

  [Symbol.dispose](): void {
    this.#descriptor.close();
  }
}

/**
 * Reads the identity of the mount that contains the file of a descriptor. The path is
 * that of the device.
 */
export function numbersOf(
  fd: number,
  source: string,
  type?: string,
): MountNumbers {
  const identity = mountOf(fd);
  const number = mountNumberAt(fd);
  const failed = typeof identity === "number" ? identity : number;
  unwrap(Math.min(failed, 0), () => ({
    action: `Cannot examine the mount of ${quote(source)}`,
    operation: "statx",
    path: source,
  }));
  return {
    identity: identity as MountIdentity,
    number,
    // A Btrfs on several devices may be named after another one of them.
    ...(type !== "btrfs" && { source }),
  };
}

/** Returns the path of a descriptor. */
function canonical(fd: number): FilePath | undefined {
  const bytes = readLinkBytes(pathOf(fd));
  if (typeof bytes === "number" || bytes[0] !== SLASH) return undefined;
  return { text: decoder.decode(bytes), bytes: terminated(bytes) };
}

const SLASH = "/".charCodeAt(0);

/** Identity of a mount. */
export interface MountNumbers {
  readonly identity: MountIdentity;
  /** Mount ID in `mountinfo`. */
  readonly number: number;
  /** Path of the device, as in `mountinfo`, if it is known. */
  readonly source?: string;
}

/** A mount point in its parent directory, which is held open. */
class Place implements Disposable {
  /** Path for the kernel that leads through the open directory. */
  readonly bytes: CString;
  /** Returns `true` if the mount is still on top. */
  readonly isSame: () => boolean;
  readonly #parent: FileDescriptor;

  constructor(parent: number, name: CString, isSame: () => boolean) {
    this.#parent = new FileDescriptor(parent);
    const directory = encoder.encode(`${pathOf(parent)}/`);
    this.bytes = new Uint8Array([...directory, ...name]);
    this.isSame = isSame;
  }

  [Symbol.dispose](): void {
    this.#parent.close();
  }
}

const encoder = new TextEncoder();

/**
 * Waits for other unmounts by this library in the mount namespace. Any user can hold the
 * lock, so the wait is short, and the unmount goes on without it.
 */
async function takeTurn(): Promise<Disposable | undefined> {
  const fd = openAt(AT_FDCWD, cString("/proc/self/ns/mnt"), O_RDONLY);
  if (fd < 0) return undefined;
  const namespace = new FileDescriptor(fd);
  const isLocked = () => tryLock(fd, true) !== -EAGAIN;
  await pollUntil(isLocked, { timeout: BRIEF_USE, signal: undefined });
  return namespace; // closing it releases the lock
}

/** A mount on a directory. */
export class PublicMount {
  readonly #identity: MountIdentity;
  /** Mount ID in `mountinfo`, which the kernel may reuse. */
  readonly #number: number;
  /** Source in `mountinfo`, if it is known. */
  readonly #source: string | undefined;
  readonly #isOwnNamespace: boolean;
  #path: FilePath;

  /** Describes a mount that every process sees, or one in a mount namespace of this thread. */
  constructor(
    path: FilePath,
    { identity, number, source }: MountNumbers,
    isOwnNamespace = false,
  ) {
    this.#path = path;
    this.#identity = identity;
    this.#number = number;
    this.#source = source;
    this.#isOwnNamespace = isOwnNamespace;
  }

  /** Mount point. */
  get path(): string {
    return this.#path.text;
  }

  /** Writes back the file system. Returns the error if that fails. */
  async writeBack(): Promise<LoopError | undefined> {
    if (!await this.#isThere()) return undefined;
    const root = openRoot(AT_FDCWD, this.#path.bytes);
    if (typeof root !== "number" && !this.#isSame(mountOf(root.fd))) {
      root.close();
      return undefined; // replaced by another process just now, which unmount() detects
    }
    return await writeBackFileSystem(root, this.path);
  }

  /** Unmounts, unless another process already has. Returns `false` if the mount is in use and stays mounted. */
  async unmount(isLazy: boolean): Promise<boolean> {
    // umount2() takes the mount on top, which another unmount may have uncovered.
    using _turn = await takeTurn();
    if (!await this.#isThere()) return true;
    using place = this.#openPlace();
    if (place === undefined) return false; // replaced just now
    const { bytes } = place;
    let result = this.#isOwnNamespace
      ? umount(bytes, isLazy)
      : await umountAsync(bytes, isLazy);
    // The error of another thread is unknown, and the mount may have been replaced since.
    if (result === -1 && !this.#isOwnNamespace) {
      if (!place.isSame()) return false;
      result = umount(bytes, isLazy);
    }
    if (result === -EBUSY) return false;
    if (result === -EINVAL && !await this.#isThere()) return true;
    unwrap(result, () => ({
      action: `Cannot unmount ${quote(this.path)}`,
      operation: "umount2",
      path: this.path,
    }));
    return true;
  }

  /**
   * Opens the parent directory of the mount point, so that no other user who owns a
   * directory of the path can exchange it before umount2().
   */
  #openPlace(): Place | undefined {
    const { bytes } = this.#path;
    const start = bytes.lastIndexOf(SLASH) + 1;
    const parent = openAt(
      AT_FDCWD,
      terminated(bytes.subarray(0, start)),
      O_PATH | O_DIRECTORY,
    );
    if (parent < 0) return undefined;
    const name = bytes.slice(start);
    const place = new Place(
      parent,
      name,
      () => this.#isSame(mountAt(parent, name, AT_SYMLINK_NOFOLLOW)),
    );
    if (place.isSame()) return place;
    place[Symbol.dispose]();
    return undefined;
  }

  /** Returns up to 10 mount points in the file system, each of which keeps it mounted. */
  async mountsWithin(): Promise<string[]> {
    const found: string[] = [];
    const slices = new Slices();
    for (const mount of ownMounts()) {
      if (slices.isTired) await slices.breathe();
      if (mount.target.startsWith(`${this.path}/`)) found.push(mount.target);
      if (found.length === 10) break;
    }
    return found;
  }

  /**
   * Checks that the mount still exists, and updates its mount point.
   *
   * @throws {LoopError} If another file system is mounted over it (`EBUSY`).
   */
  async #isThere(): Promise<boolean> {
    if (this.#isOnTop()) return true;
    const moved = await this.#find();
    if (moved === undefined) return false;
    this.#path = moved;
    if (this.#isOnTop()) return true;
    // From Linux 6.8 on, another identity under the same number is another mount.
    const number = mountNumberAt(AT_FDCWD, moved.bytes);
    if (number === this.#number) return false;
    throw new LoopError(`Cannot unmount ${quote(this.path)}`, {
      errno: EBUSY,
      operation: "umount2",
      path: this.path,
      hint: `another file system is mounted over it: unmount ${
        printable(this.path)
      } first`,
    });
  }

  #isOnTop(): boolean {
    return this.#isSame(
      mountAt(AT_FDCWD, this.#path.bytes, AT_SYMLINK_NOFOLLOW),
    );
  }

  #isSame(mount: MountIdentity | number): boolean {
    return typeof mount !== "number" && mount.isRoot &&
      mount.id === this.#identity.id &&
      mount.device === this.#identity.device;
  }

  /** Finds the mount point of a mount that another process may have moved. */
  async #find(): Promise<FilePath | undefined> {
    const slices = new Slices();
    for (const mount of ownMounts()) {
      if (slices.isTired) await slices.breathe();
      if (
        mount.id === this.#number &&
        mount.source === (this.#source ?? mount.source)
      ) {
        return { text: mount.target, bytes: terminated(mount.targetBytes) };
      }
    }
    return undefined;
  }
}
