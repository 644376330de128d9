/** The arguments of the process as bytes: `Deno.args` replaces what is not UTF-8. */
import { readBytes } from "./sysfs.ts";

const NUL = 0;
const SLASH = "/".charCodeAt(0);
/** What one read of `/proc/self/cmdline` gives at most. */
const MAX_BYTES = 65536;

/** The arguments of this program, the last ones of the process; none when they cannot be read. */
export function rawArguments(): Uint8Array[] {
  const line = readBytes("/proc/self/cmdline");
  if (typeof line === "number" || line.length >= MAX_BYTES) return [];
  const args: Uint8Array[] = [];
  for (let start = 0; start < line.length;) {
    const end = line.indexOf(NUL, start);
    args.push(line.slice(start, end));
    start = end + 1;
  }
  return args.slice(args.length - Deno.args.length);
}

/** A path as a URL, all of it percent-encoded, slashes too: as a single segment no `..` is resolved before the kernel sees it. */
export function urlOf(path: Uint8Array): URL {
  const start = path[0] === SLASH ? "" : "proc/self/cwd/";
  const encoded = Array.from(
    path[0] === SLASH ? path.subarray(1) : path,
    (byte) => `%${byte.toString(16).padStart(2, "0")}`,
  );
  return new URL(`file:///${start}${encoded.join("")}`);
}
