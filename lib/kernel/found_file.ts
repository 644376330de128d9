/**
 * Examines files before opening them. A name may lead to another file a moment later,
 * so the examined file is held and that one is opened.
 */
import { AT_STATX_DONT_SYNC, type Stat, statOf } from "../sys/stat.ts";
import { ELOOP, ENOENT, ENOSYS, ENOTDIR, ESTALE } from "../sys/errno.ts";
import {
  AT_FDCWD,
  close,
  type CString,
  O_NOCTTY,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_PATH,
  openAt,
  openAt2,
  RESOLVE_NO_SYMLINKS,
  transientCString,
} from "../sys/libc.ts";
import { readLink } from "../sys/sysfs.ts";

/** Policy for symbolic links in a path. */
export type Symlinks = "follow" | "refuse";

/**
 * A file that is held but not opened, so that a FIFO does not hang and no driver is
 * called.
 */
export class FoundFile implements Disposable {
  readonly stat: Stat;
  readonly #fd: number;
  readonly #directory: number;
  readonly #path: CString;

  private constructor(
    stat: Stat,
    fd: number,
    directory: number,
    path: CString,
  ) {
    this.stat = stat;
    this.#fd = fd;
    this.#directory = directory;
    this.#path = path;
  }

  /** Finds the file of a name. As in `lib/sys`, a failure is a negative error number. */
  static find(
    directory: number,
    path: CString,
    symlinks: Symlinks = "follow",
  ): FoundFile | number {
    const fd = symlinks === "refuse"
      ? openAt2(directory, path, O_PATH, RESOLVE_NO_SYMLINKS)
      : openAt(directory, path, O_PATH);
    if (fd < 0) return fd;
    const stat = statOf(fd);
    if (typeof stat !== "number") {
      return new FoundFile(stat, fd, directory, path);
    }
    close(fd);
    return stat;
  }

  /**
   * Finds a name in a directory that other users may write to, without following a link
   * or asking a file server.
   */
  static findName(directory: number, name: CString): FoundFile | number {
    const fd = openAt(directory, name, O_PATH | O_NOFOLLOW);
    if (fd < 0) return fd;
    const stat = statOf(fd, AT_STATX_DONT_SYNC);
    if (typeof stat !== "number") {
      return new FoundFile(stat, fd, directory, name);
    }
    close(fd);
    return stat;
  }

  /**
   * Opens exactly the file that was found. Returns a descriptor or a negative error
   * number.
   */
  open(flags: number): number {
    const fd = openAt(AT_FDCWD, transientCString(pathOf(this.#fd)), flags);
    return fd === -ENOENT || fd === -ENOTDIR ? this.#openByName(flags) : fd;
  }

  /** The canonical path, if the kernel reports one. */
  get canonicalPath(): string | undefined {
    const path = readLink(pathOf(this.#fd));
    return typeof path === "string" && path.startsWith("/") ? path : undefined;
  }

  /**
   * Opens the file by name, if `/proc` is not mounted, and compares its numbers, which
   * are unique while the file is held.
   */
  #openByName(flags: number): number {
    const fd = openAt(
      this.#directory,
      this.#path,
      flags | O_NONBLOCK | O_NOCTTY,
    );
    if (fd < 0) return fd;
    const stat = statOf(fd);
    const isSame = typeof stat !== "number" &&
      stat.device === this.stat.device && stat.inode === this.stat.inode;
    if (isSame) return fd;
    close(fd);
    return typeof stat === "number" ? stat : -ESTALE;
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}

/** Hints for the errors of refusing symbolic links. */
export const SYMLINK_HINTS: Record<number, string> = {
  [ELOOP]: "part of the path is a symbolic link, which the options refuse",
  [ENOSYS]: 'symlinks: "refuse" requires Linux 5.6 or later',
};

/**
 * Returns a path that leads to the file of an open descriptor, whatever its name is
 * now.
 */
export function pathOf(fd: number): string {
  return `/proc/self/fd/${fd}`;
}
