/**
 * Files that are examined before they are opened. A name may lead to something else a
 * moment later: what was examined is held, and that is opened.
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

/** Whether symbolic links in a path lead on, or are errors. */
export type Symlinks = "follow" | "refuse";

/** What a name led to, held but not opened: a FIFO does not hang, and no driver is asked. */
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

  /** Finds what a name leads to. As in `lib/sys`, a failure is a negative error number. */
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
   * Finds a name in a directory that others may write to: a link is not followed, and no
   * file server is asked.
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

  /** Opens the very file that was found: a descriptor, or a negative error number. */
  open(flags: number): number {
    const fd = openAt(AT_FDCWD, transientCString(pathOf(this.#fd)), flags);
    return fd === -ENOENT || fd === -ENOTDIR ? this.#openByName(flags) : fd;
  }

  /** Canonical path, if the kernel tells it. */
  get canonicalPath(): string | undefined {
    const path = readLink(pathOf(this.#fd));
    return typeof path === "string" && path.startsWith("/") ? path : undefined;
  }

  /** Where `/proc` is not mounted. As long as the file is held, no other has its numbers. */
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

/** What error numbers mean where symbolic links are refused. */
export const SYMLINK_HINTS: Record<number, string> = {
  [ELOOP]: "a part of the path is a symbolic link, and those are refused",
  [ENOSYS]: 'symlinks: "refuse" needs Linux 5.6 or later',
};

/** A path that leads to the file of a descriptor of ours, without following its name. */
export function pathOf(fd: number): string {
  return `/proc/self/fd/${fd}`;
}
