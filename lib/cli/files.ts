/**
 * File names as the user gave them. `Deno.args` replaces bytes that are not UTF-8 by
 * U+FFFD, which would name another file.
 */
import { quote } from "../errors.ts";
import { readBytes } from "../sys/sysfs.ts";
import { UsageError } from "./arguments.ts";

/** A file for the library: the text itself, or a URL where the name is not UTF-8. */
export function fileOf(operand: string): string | URL {
  return operand.includes("\ufffd") ? rawFileOf(operand) : operand;
}

function rawFileOf(operand: string): string | URL {
  const candidates = rawArguments()
    .filter((bytes) => decoder.decode(bytes) === operand)
    .map((bytes) => urlOf(bytes));
  const [url] = candidates;
  if (url === undefined || candidates.some(({ href }) => href !== url.href)) {
    throw new UsageError(
      `${quote(operand)} is not UTF-8, and which file it means cannot be told`,
    );
  }
  return url;
}

const decoder = new TextDecoder();
const NUL = 0;
const SLASH = "/".charCodeAt(0);
/** What one read of `/proc/self/cmdline` gives at most. */
const MAX_BYTES = 65536;

/** The arguments of this program, the last ones of the process. */
function rawArguments(): Uint8Array[] {
  const line = readBytes("/proc/self/cmdline");
  if (typeof line === "number" || line.length >= MAX_BYTES) return [];
  const args: Uint8Array[] = [];
  for (let start = 0; start < line.length;) {
    const end = line.indexOf(NUL, start);
    args.push(line.slice(start, end));
    start = end + 1;
  }
  return args.slice(-Deno.args.length);
}

/** All of it percent-encoded, slashes too: as a single segment no `..` is resolved before the kernel sees it. */
function urlOf(path: Uint8Array): URL {
  const start = path[0] === SLASH ? "" : "proc/self/cwd/";
  const encoded = Array.from(
    path[0] === SLASH ? path.subarray(1) : path,
    (byte) => `%${byte.toString(16).padStart(2, "0")}`,
  );
  return new URL(`file:///${start}${encoded.join("")}`);
}
