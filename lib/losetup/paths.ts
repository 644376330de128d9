/** Resolves paths. */
import { AT_FDCWD, close, O_PATH, openAt } from "../sys/libc.ts";
import { readLinkBytes } from "../sys/sysfs.ts";
import { type ByteString, fromBytes, toCString } from "./byte_string.ts";

/**
 * Returns the path with symbolic links resolved, or the path itself if it does not
 * exist.
 */
export function canonicalPath(path: ByteString): ByteString {
  const fd = openAt(AT_FDCWD, toCString(path), O_PATH);
  if (fd < 0) return path;
  const target = readLinkBytes(`/proc/self/fd/${fd}`);
  close(fd);
  return typeof target === "number" ? path : fromBytes(target);
}
