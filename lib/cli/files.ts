/**
 * Finds the bytes of file names on the command line. `Deno.args` replaces bytes that are
 * not UTF-8 with U+FFFD, which would name another file.
 */
import { checkPath } from "../arguments.ts";
import { quote } from "../errors.ts";
import { rawArguments, urlOf } from "../sys/process_arguments.ts";
import { UsageError } from "./usage_error.ts";

/** Returns a file for the library: the text itself, or a URL if the name is not UTF-8. */
export function fileOf(operand: string): string | URL {
  if (!operand.includes(REPLACEMENT)) return operand;
  const [first, ...others] = originals(operand).map(urlOf);
  if (first === undefined || others.some(({ href }) => href !== first.href)) {
    throw new UsageError(
      `${quote(operand)} is not UTF-8, and it is unclear which file it means`,
    );
  }
  return first;
}

/** Returns the bytes of a file of `fileOf` as the user gave it. */
export function bytesOf(file: string | URL): Uint8Array {
  const path = checkPath(file).bytes.slice(0, -1);
  const isRelative = file instanceof URL &&
    RELATIVE.every((byte, index) => path[index] === byte);
  return isRelative ? path.subarray(RELATIVE.length) : path;
}

/** Returns text as the user gave it. Throws if it is not UTF-8, which only file names may be. */
export function exact(text: string): string {
  if (!text.includes(REPLACEMENT)) return text;
  const isExact = (bytes: Uint8Array): boolean => {
    const encoded = encoder.encode(decoder.decode(bytes));
    return encoded.length === bytes.length &&
      encoded.every((byte, index) => byte === bytes[index]);
  };
  const found = originals(text);
  if (found.length > 0 && found.every(isExact)) return text;
  throw new UsageError(`${quote(text)} is not UTF-8`);
}

const REPLACEMENT = "\ufffd";

/** Returns the bytes of arguments that decode to the text, or of their values after `=`. */
function originals(text: string): Uint8Array[] {
  return rawArguments().flatMap((bytes) => {
    if (decoder.decode(bytes) === text) return [bytes];
    const value = bytes.subarray(bytes.indexOf(EQUALS) + 1);
    return decoder.decode(value) === text ? [value] : [];
  });
}

const encoder = new TextEncoder();
/** Start of the path in a URL of a relative path. */
const RELATIVE = encoder.encode("/proc/self/cwd/");
const EQUALS = "=".charCodeAt(0);
const decoder = new TextDecoder();
