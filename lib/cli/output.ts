// deno-lint-ignore-file no-console
/** What is printed, and where: stdout is the result, stderr everything else. */

/** The result could not be written. */
export class OutputError extends Error {
  override readonly name = "OutputError";
}

/**
 * A line of the result. That nobody reads any more is no error.
 *
 * @throws {OutputError} when it cannot be written
 */
export function print(line: string): void {
  try {
    console.log(line);
  } catch (error) {
    const why = error instanceof Error ? error.message : error;
    throw new OutputError(`Cannot write to standard output: ${why}`);
  }
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
