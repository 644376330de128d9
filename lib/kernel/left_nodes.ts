/**
 * Finds and removes private nodes left over from killed processes and persisted
 * devices.
 */
import {
  AT_STATX_DONT_SYNC,
  AT_SYMLINK_NOFOLLOW,
  isBlockDevice,
  statAt,
  statOf,
} from "../sys/stat.ts";
import { quote, unwrap } from "../errors.ts";
import { FileDescriptor } from "./file_descriptor.ts";
import { pathOf } from "./found_file.ts";
import { hasSysfs, isBound } from "./loop_sysfs.ts";
import {
  AT_FDCWD,
  cString,
  duplicate,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  openAt,
  removeDirectoryAt,
  unlinkAt,
} from "../sys/libc.ts";
import { namesIn, openDirectoryAt } from "../sys/sysfs.ts";
import { PARENTS, type PrivateDirectory } from "./nodes.ts";

/**
 * Finds private directories that are left over: from a killed process, or from a device
 * that was persisted and has since been detached. None of their devices has a file
 * attached.
 */
export function leftDirectories(): string[] {
  if (!hasSysfs()) return [];
  const left: string[] = [];
  // Those with a dot are of a moment, unless their process was killed.
  const pattern = /^\.?loopdev-[0-9a-f-]{36}$/;
  for (const { path, names } of privateDirectories(pattern)) {
    const minors = names
      .map((name) => /^loop(\d{1,7})(?:p\d+)?$/.exec(name)?.[1])
      .filter((digits) => digits !== undefined);
    if (!minors.some((minor) => isBound(Number(minor)))) left.push(path);
  }
  return left;
}

/**
 * Removes the private nodes of a free device that another process attached. A process
 * that attaches a file to the device now is not affected: it creates its directory only
 * for a bound device, and the directories were listed before the device was found free.
 */
export function removeLeftNodes(minor: number): void {
  if (!hasSysfs()) return;
  const ours = new RegExp(`^loop${minor}(p\\d+)?$`);
  for (const { path, fd, names } of privateDirectories()) {
    if (!names.some((name) => ours.test(name)) || isBound(minor)) continue;
    removeNodes(fd, names);
    removeDirectoryAt(AT_FDCWD, cString(path));
  }
}

/** Removes all nodes in a private directory, whichever process created them. */
export function removeAllNodes(directory: number): void {
  const fd = openDirectoryAt(pathOf(directory));
  if (fd < 0) return;
  using listed = new FileDescriptor(fd);
  removeNodes(directory, [...someNames(listed.fd)]);
}

function removeNodes(directory: number, names: readonly string[]): void {
  for (const name of names.map(cString)) {
    const stat = statAt(directory, name, AT_SYMLINK_NOFOLLOW);
    const isNode = typeof stat !== "number" && isBlockDevice(stat);
    if (isNode) unlinkAt(directory, name);
  }
}

/** Opens the first private directory whose names fit. */
export function findPrivateDirectory(
  isIt: (names: readonly string[]) => boolean,
): PrivateDirectory | undefined {
  for (const { path, fd, names } of privateDirectories()) {
    if (!isIt(names)) continue;
    const own = unwrap(duplicate(fd), () => ({
      action: `Cannot open ${quote(path)}`,
      operation: "fcntl",
      path,
    }));
    return { path, descriptor: new FileDescriptor(own) };
  }
  return undefined;
}

/** A private directory, open while it is examined. */
interface Found {
  readonly path: string;
  readonly fd: number;
  readonly names: string[];
}

/**
 * Maximum number of names to examine: any user can create any number of them in `/tmp`.
 */
const MAX_NAMES = 10_000;
/** Maximum number of directories to open in one place. */
const MAX_OPENED = 500;

/**
 * Finds private directories of the current user. Directories of other users in `/tmp`
 * are not read: they can have the same names, and file systems that do not answer
 * mounted on them.
 */
function* privateDirectories(
  pattern = /^loopdev-[0-9a-f-]{36}$/,
): Generator<Found> {
  const self = statAt(AT_FDCWD, cString("/proc/self"));
  if (typeof self === "number") return;
  for (const parent of PARENTS) {
    const stat = statAt(AT_FDCWD, cString(parent), AT_STATX_DONT_SYNC);
    const fd = openDirectoryAt(parent);
    if (fd < 0) continue;
    using directory = new FileDescriptor(fd);
    let opened = 0;
    for (const entry of someNames(directory.fd)) {
      if (!pattern.test(entry)) continue;
      if (++opened > MAX_OPENED) break;
      const found = openPrivate(directory.fd, entry);
      if (found === undefined) continue;
      using held = found;
      const own = statOf(held.fd, AT_STATX_DONT_SYNC);
      const isOurs = typeof own !== "number" && typeof stat !== "number" &&
        own.owner === self.owner && own.device === stat.device;
      if (!isOurs) continue;
      const names = openDirectoryAt(pathOf(held.fd));
      if (names < 0) continue;
      using listed = new FileDescriptor(names);
      yield {
        path: `${parent}/${entry}`,
        fd: held.fd,
        names: [...someNames(listed.fd)],
      };
    }
  }
}

function openPrivate(
  directory: number,
  name: string,
): FileDescriptor | undefined {
  const flags = O_PATH | O_DIRECTORY | O_NOFOLLOW;
  const fd = openAt(directory, cString(name), flags);
  return fd < 0 ? undefined : new FileDescriptor(fd);
}

function* someNames(fd: number): Generator<string> {
  let count = 0;
  for (const names of namesIn(fd)) {
    if (typeof names === "number") return;
    yield* names;
    count += names.length;
    if (count >= MAX_NAMES) return;
  }
}
