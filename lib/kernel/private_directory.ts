/** Directories of our own for device nodes, where `/dev` has none. */
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
