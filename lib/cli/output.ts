// deno-lint-ignore-file no-console
/** What is printed, and where: stdout is the result, stderr everything else. */
import { escapeControls } from "../errors.ts";

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

/** The columns of the terminal that shows the result; `undefined` if there is none. */
export function terminalWidth(): number | undefined {
  return Deno.stdout.isTerminal() ? columns() : undefined;
}

/** The columns of the terminal. One that does not tell its size has 80. */
export function columns(): number {
  return Deno.consoleSize().columns || 80;
}

/**
 * A line about what went wrong. Arguments and texts of the runtime may be in it as they
 * are; escaping what is escaped already changes nothing.
 */
export function fail(message: string): void {
  console.error(`loopdev: ${escapeControls(message)}`);
}

/** A line about what the user may not have meant. */
export function warn(message: string): void {
  fail(`warning: ${message}`);
}

/** Where in the program something unexpected happened, in lines. */
export function trace(frames: string): void {
  for (const frame of frames.split("\n")) {
    if (frame !== "") console.error(escapeControls(frame));
  }
}

/** The result for programs: JSON, which is valid UTF-8 whatever the file names are. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}
