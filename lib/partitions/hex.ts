/** Formats a number in lowercase hexadecimal, padded with zeros. */
export function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}
