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
  if (fd < 0) return absolute(path);
  try {
    return linkTarget(`/proc/self/fd/${fd}`) ?? path;
  } finally {
    close(fd);
  }
}

function absolute(path: ByteString): ByteString {
  if (path.startsWith("/")) return path;
  return `${linkTarget("/proc/self/cwd") ?? ""}/${path}`;
}

function linkTarget(link: string): ByteString | undefined {
  const buffer = new Uint8Array(4096);
  const size = readLinkAt(AT_FDCWD, cString(link), buffer);
  return size < 0 ? undefined : fromBytes(buffer.subarray(0, size));
}
