/**
 * Text of unknown encoding: arguments, file names, sysfs attributes. Each character of
 * the string is one byte, so that every byte is output unchanged.
 */

/** A string in which each character is one byte. */
export type ByteString = string;

/** Converts bytes to text. */
export function fromBytes(bytes: Uint8Array): ByteString {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}

/** Converts text to bytes. */
export function toBytes(text: ByteString): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** Converts text to NUL-terminated bytes. */
export function toCString(text: ByteString): Uint8Array {
  return toBytes(`${text}\0`);
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Encodes Unicode text as UTF-8. */
export function fromText(text: string): ByteString {
  return fromBytes(encoder.encode(text));
}

/** Decodes text as Unicode, where it is UTF-8. */
export function toText(text: ByteString): string {
  return decoder.decode(toBytes(text));
}
