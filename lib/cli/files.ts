/**
 * File names as the user gave them. `Deno.args` replaces bytes that are not UTF-8 by
 * U+FFFD, which would name another file.
 */
import { quote } from "../errors.ts";
import { rawArguments, urlOf } from "../sys/process_arguments.ts";
import { UsageError } from "./usage_error.ts";

/** A file for the library: the text itself, or a URL where the name is not UTF-8. */
export function fileOf(operand: string): string | URL {
  if (!operand.includes(REPLACEMENT)) return operand;
  const [first, ...others] = originals(operand).map(urlOf);
  if (first === undefined || others.some(({ href }) => href !== first.href)) {
    throw new UsageError(
      `${quote(operand)} is not UTF-8, and which file it means cannot be told`,
    );
  }
  return first;
}

/** Text that must be what the user gave, which was not to be UTF-8 only if it is a file. */
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

/** The arguments that read as the text, or end in it behind `=`, as they were given. */
function originals(text: string): Uint8Array[] {
  return rawArguments().flatMap((bytes) => {
    if (decoder.decode(bytes) === text) return [bytes];
    const value = bytes.subarray(bytes.indexOf(EQUALS) + 1);
    return decoder.decode(value) === text ? [value] : [];
  });
}

const encoder = new TextEncoder();
const EQUALS = "=".charCodeAt(0);
const decoder = new TextDecoder();
