/**
 * Text of which nobody knows the encoding: arguments, file names, what sysfs says. A
 * string in which each character is one byte, so that every byte comes out as it went in.
 */

/** Each character is one byte. */
export type ByteString = string;

/** The bytes as text. */
export function fromBytes(bytes: Uint8Array): ByteString {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}

/** The text as bytes. */
export function toBytes(text: ByteString): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** The text as bytes for C. */
export function toCString(text: ByteString): Uint8Array {
  return toBytes(`${text}\0`);
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Unicode text as the bytes of its UTF-8. */
export function fromText(text: string): ByteString {
  return fromBytes(encoder.encode(text));
}

/** As Unicode, where it is UTF-8. */
export function toText(text: ByteString): string {
  return decoder.decode(toBytes(text));
}
