/**
 * Creates and removes device nodes in directories that other users may write to,
 * checking each name before touching it.
 */
import {
  AT_SYMLINK_NOFOLLOW,
  isBlockDevice,
  S_IFMT,
  type Stat,
  statAt,
  statOf,
} from "../sys/stat.ts";
import type { FilePath } from "../arguments.ts";
import { type Failure, quote, unwrap } from "../errors.ts";
import { EEXIST, ENOENT } from "../sys/errno.ts";
import {
  AT_FDCWD,
  chmodAt,
  close,
  type CString,
  mknodAt,
  O_NOFOLLOW,
  O_PATH,
  openAt,
  transientCString,
  unlinkAt,
} from "../sys/libc.ts";
import { fileType, unwrapStat } from "./file_descriptor.ts";
import { pathOf } from "./found_file.ts";

const PERMISSIONS = 0o7777;

const CHMOD_HINTS: Record<number, string> = {
  [ENOENT]: "the umask clears some bits of the mode, and /proc is not mounted",
};

/**
 * Creates a node with exactly the type and permissions of `mode`, regardless of the
 * umask. Returns its identity.
 */
export function makeNode(
  directory: number,
  node: FilePath,
  mode: number,
  rdev: number,
): Stat {
  const action = `Cannot create node ${quote(node.text)}`;
  const failure = (operation: string) => (): Failure => ({
    action,
    operation,
    path: node.text,
    hint: {
      [EEXIST]: occupant(directory, node.bytes),
      ...(operation === "chmod" ? CHMOD_HINTS : {}),
    },
  });
  unwrap(mknodAt(directory, node.bytes, mode, rdev), failure("mknod"));
  const isOurs = (stat: Stat): boolean =>
    (stat.mode & S_IFMT) === (mode & S_IFMT) && stat.rdev === rdev &&
    stat.links === 1;
  const fd = openAt(directory, node.bytes, O_PATH | O_NOFOLLOW);
  try {
    unwrap(fd, failure("open"));
    const stat = unwrapStat(statOf(fd), action, node.text);
    unwrap(isOurs(stat) ? 0 : -EEXIST, failure("stat"));
    if ((stat.mode & PERMISSIONS) !== (mode & PERMISSIONS)) {
      const path = transientCString(pathOf(fd));
      unwrap(chmodAt(AT_FDCWD, path, mode & PERMISSIONS), failure("chmod"));
    }
    return stat;
  } catch (error) {
    const stat = statAt(directory, node.bytes, AT_SYMLINK_NOFOLLOW);
    if (typeof stat !== "number" && isOurs(stat)) {
      unlinkAt(directory, node.bytes);
    }
    throw error;
  } finally {
    if (fd >= 0) close(fd);
  }
}

/** Names the file that has the name of a node. */
function occupant(directory: number, name: CString): string {
  const stat = statAt(directory, name, AT_SYMLINK_NOFOLLOW);
  if (typeof stat === "number") return "something else has that name";
  return isBlockDevice(stat)
    ? "a node of another device has that name; remove it if it is left over"
    : `${fileType(stat.mode)} has that name`;
}

/**
 * Removes a node created here, if the name still refers to it. Because `unlinkat` takes
 * only a name, a replacement at that very moment is not noticed. Returns 0 or a
 * negative error number.
 */
export function removeNode(
  directory: number,
  name: CString,
  made: Stat,
): number {
  const stat = statAt(directory, name, AT_SYMLINK_NOFOLLOW);
  if (typeof stat === "number") return stat === -ENOENT ? 0 : stat;
  const isIt = stat.device === made.device && stat.inode === made.inode &&
    stat.rdev === made.rdev &&
    (stat.mode & S_IFMT) === (made.mode & S_IFMT);
  const result = isIt ? unlinkAt(directory, name) : 0;
  return result === -ENOENT ? 0 : result;
}
