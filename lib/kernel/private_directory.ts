/** Creates private directories for device nodes, for systems where `/dev` has none. */
import { FileDescriptor } from "./file_descriptor.ts";
import {
  AT_FDCWD,
  cString,
  mkdirAt,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  openAt,
  removeDirectoryAt,
} from "../sys/libc.ts";

/** Places to try, because some do not allow device nodes. */
export const PARENTS: readonly string[] = ["/run", "/tmp", "/dev", "/dev/shm"];

/** A new directory that only this user can write to, held by its descriptor. */
export interface PrivateDirectory {
  readonly path: string;
  readonly descriptor: FileDescriptor;
}

/**
 * Creates a directory with a random name. The prefix is `loopdev-` for the nodes of a
 * device, or `.loopdev-` for a temporary node. Returns `undefined` if none can be
 * created.
 */
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
