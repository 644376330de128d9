/** Paths. */
import {
  AT_FDCWD,
  close,
  cString,
  O_PATH,
  openAt,
  readLinkAt,
} from "../sys/libc.ts";
import { type ByteString, fromBytes, toCString } from "./byte_string.ts";

/** The path without symbolic links, or the path itself when it leads to nothing. */
export function canonicalPath(path: ByteString): ByteString {
  const fd = openAt(AT_FDCWD, toCString(path), O_PATH);
  if (fd < 0) return path;
  const target = new Uint8Array(4096);
  const link = cString(`/proc/self/fd/${fd}`);
  const size = readLinkAt(AT_FDCWD, link, target);
  close(fd);
  return size < 0 ? path : fromBytes(target.subarray(0, size));
}
