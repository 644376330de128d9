/**
 * Reads the arguments of the process as bytes, because `Deno.args` replaces bytes that
 * are not UTF-8.
 */
import { readBytes } from "./sysfs.ts";

const NUL = 0;
const SLASH = "/".charCodeAt(0);
/** Maximum size of one read of `/proc/self/cmdline`. */
const MAX_BYTES = 65536;

/**
 * Returns the arguments of this program, which are the last ones of the process, or
 * none if they cannot be read.
 */
export function rawArguments(): Uint8Array[] {
  const line = readBytes("/proc/self/cmdline");
  if (typeof line === "number" || line.length >= MAX_BYTES) return [];
  const args: Uint8Array[] = [];
  for (let start = 0; start < line.length;) {
    const end = line.indexOf(NUL, start);
    if (end < 0) return []; // cut off, or replaced by a title of the process
    args.push(line.slice(start, end));
    start = end + 1;
  }
  return args.slice(args.length - Deno.args.length);
}

/**
 * Converts a path to a URL. All of it is percent-encoded, including slashes: in a
 * single segment, no `..` is resolved before the kernel sees it.
 */
export function urlOf(path: Uint8Array): URL {
  const start = path[0] === SLASH ? "" : "proc/self/cwd/";
  const encoded = Array.from(
    path[0] === SLASH ? path.subarray(1) : path,
    (byte) => `%${byte.toString(16).padStart(2, "0")}`,
  );
  return new URL(`file:///${start}${encoded.join("")}`);
}
