/** Writes back one file system with syncfs(2), and reports the errors. */
import { LoopError, quote } from "../errors.ts";
import { FileDescriptor } from "../kernel/file_descriptor.ts";
import { EIO } from "../sys/errno.ts";
import {
  type CString,
  cString,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_RDONLY,
  openAt,
} from "../sys/libc.ts";
import { syncfs, syncfsAsync } from "../sys/mount_calls.ts";
import { MAX_REPEATED_TIME } from "../waiting.ts";

const HERE = cString(".");

/** Opens a directory of a file system, or returns a negative error number. */
export function openRoot(
  directory: number,
  path: CString = HERE,
): FileDescriptor | number {
  const fd = openAt(directory, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  return fd < 0 ? fd : new FileDescriptor(fd);
}

/**
 * Writes back the file system of an open directory on another thread, where errno is lost.
 * The kernel reports an error of the file system once to each open file. A second
 * descriptor, opened before, therefore gets the error on this thread, if by then there is
 * nothing left to write. Otherwise it becomes `EIO`, as does an error of the device, which
 * is reported only once.
 */
export async function writeBackFileSystem(
  root: FileDescriptor | number,
  path: string,
): Promise<LoopError | undefined> {
  const failure = (
    result: number,
    operation: string,
    reason?: string,
  ): LoopError =>
    new LoopError(`Cannot write back ${quote(path)}`, {
      errno: -result,
      operation,
      path,
      hint: [reason, "what was written last may not be in the file"]
        .filter((text) => text !== undefined).join("; "),
    });
  if (typeof root === "number") return failure(root, "open");
  using first = root;
  const second = openRoot(first.fd);
  if (typeof second === "number") return failure(second, "open");
  using teller = second;
  if (await syncfsAsync(first.fd) >= 0) return undefined;
  const start = performance.now();
  await syncfsAsync(first.fd);
  if (performance.now() - start > MAX_REPEATED_TIME) {
    return failure(-EIO, "syncfs", "the kernel's reason is not known");
  }
  const result = syncfs(teller.fd);
  return failure(result < 0 ? result : -EIO, "syncfs");
}
