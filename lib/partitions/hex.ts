/** A number in lower-case hexadecimal, with zeros in front. */
export function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}
