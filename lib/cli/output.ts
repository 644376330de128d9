// deno-lint-ignore-file no-console
/** What is printed, and where: stdout is the result, stderr everything else. */

/** A line of the result. */
export function print(line: string): void {
  console.log(line);
}

/** A line about what went wrong. */
export function fail(message: string): void {
  console.error(`loopdev: ${message}`);
}

/** A line about what the user may not have meant. */
export function warn(message: string): void {
  console.error(`loopdev: warning: ${message}`);
}

/** The result for programs: JSON, which is valid UTF-8 whatever the file names are. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}
