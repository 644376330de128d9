/** Directories of our own for device nodes, where `/dev` has none. */
import { FileDescriptor } from "./file_descriptor.ts";
import { pathOf } from "./found_file.ts";
import { hasSysfs, isBound } from "./loop_sysfs.ts";
import {
  AT_FDCWD,
  AT_STATX_DONT_SYNC,
  cString,
  mkdirAt,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  openAt,
  removeDirectoryAt,
  statAt,
  statOf,
} from "../sys/libc.ts";
import { listDirectory } from "../sys/sysfs.ts";

/** Where they are tried: some places do not allow device nodes. */
export const PARENTS: readonly string[] = ["/run", "/tmp", "/dev", "/dev/shm"];

/** A new directory that nobody else can write to, held by its descriptor. */
export interface PrivateDirectory {
  readonly path: string;
  readonly descriptor: FileDescriptor;
}

/** Makes one with a random name: `prefix` `loopdev-` for the nodes of a device, or `.loopdev-` for a moment. `undefined` where none can be made. */
export function makePrivateDirectory(
  parent: string,
  prefix: "loopdev-" | ".loopdev-",
): PrivateDirectory | undefined {
  const path = `${parent}/${prefix}${crypto.randomUUID()}`;
  if (mkdirAt(AT_FDCWD, cString(path), 0o700) < 0) return undefined;
  const fd = openAt(
    AT_FDCWD,
    cString(path),
    O_PATH | O_DIRECTORY | O_NOFOLLOW,
  );
  if (fd >= 0) return { path, descriptor: new FileDescriptor(fd) };
  removeDirectoryAt(AT_FDCWD, cString(path));
  return undefined;
}

/**
 * Private directories that are left: of a process that was killed, or of a device that
 * was left to live on and detached since. A file is attached to none of the devices.
 */
export function leftDirectories(): string[] {
  if (!hasSysfs()) return [];
  return PARENTS.flatMap((parent) => {
    const names = listDirectory(parent);
    const stat = statAt(AT_FDCWD, cString(parent), AT_STATX_DONT_SYNC);
    if (typeof names === "number" || typeof stat === "number") return [];
    return names.filter((name) => /^\.?loopdev-[0-9a-f-]{36}$/.test(name))
      .map((name) => `${parent}/${name}`)
      .filter((path) => isLeft(path, stat.device));
  });
}

/** In `/tmp` anybody makes directories of any name. What is mounted there is not read: its server may not answer. */
function isLeft(path: string, device: number): boolean {
  const fd = openAt(
    AT_FDCWD,
    cString(path),
    O_PATH | O_DIRECTORY | O_NOFOLLOW,
  );
  if (fd < 0) return false;
  using directory = new FileDescriptor(fd);
  const stat = statOf(directory.fd, AT_STATX_DONT_SYNC);
  if (typeof stat === "number" || stat.device !== device) return false;
  const names = listDirectory(pathOf(directory.fd));
  if (typeof names === "number") return false;
  const minors = names.map((name) => /^loop(\d{1,7})(?:p\d+)?$/.exec(name)?.[1])
    .filter((digits) => digits !== undefined);
  return !minors.some((minor) => isBound(Number(minor)));
}
