// deno-lint-ignore-file no-console
/** Prints results to stdout, and everything else to stderr. */
import { escapeControls, escapeForJson } from "../errors.ts";

/** Error for a result that could not be written. */
export class OutputError extends Error {
  override readonly name = "OutputError";
}

/** Prints a line of the result. A closed pipe is not an error. */
export function print(line: string): void {
  printLines([line]);
}

/** Prints a path byte by byte, because it need not be UTF-8. A closed pipe is not an error. */
export function printPath(path: Uint8Array): void {
  printBytes(new Uint8Array([...path, NEWLINE]));
}

const NEWLINE = "\n".charCodeAt(0);

/**
 * Prints lines of the result. A closed pipe is not an error.
 *
 * @throws {OutputError} If they cannot be written.
 */
export function printLines(lines: readonly string[]): void {
  printBytes(encode(lines));
}

function printBytes(bytes: Uint8Array): void {
  try {
    write(bytes);
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw outputError(error);
  }
}

/**
 * Prints a line that somebody has to get, because it tells what stays attached.
 *
 * @throws {OutputError} If it cannot be written, as into a closed pipe.
 */
export function deliver(line: string): void {
  try {
    write(encode([line]));
  } catch (error) {
    throw outputError(error);
  }
}

function encode(lines: readonly string[]): Uint8Array {
  return new TextEncoder().encode(lines.map((line) => `${line}\n`).join(""));
}

/** Writes the result. This is faster than the first call of console.log(), by more than a millisecond. */
function write(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    at += Deno.stdout.writeSync(bytes.subarray(at));
  }
}

function outputError(error: unknown): OutputError {
  const why = error instanceof Error ? error.message : error;
  return new OutputError(`Cannot write to standard output: ${why}`);
}

/** Returns the width of the terminal that shows the result, or `undefined` if there is none. */
export function terminalWidth(): number | undefined {
  return Deno.stdout.isTerminal() ? columns() : undefined;
}

/** Returns the width of the terminal in columns, or 80 if the terminal does not report it. */
export function columns(): number {
  return Deno.consoleSize().columns || 80;
}

/**
 * Prints a line about a failure. It may contain raw arguments and texts of the runtime.
 * Escaping text twice changes nothing.
 */
export function fail(message: string): void {
  complain(`loopdev: ${message}`);
}

/** Prints a line on stderr, if that is possible. The work goes on in any case. */
function complain(line: string): void {
  try {
    console.error(escapeControls(line));
  } catch {
    isMuted = true; // a closed pipe, or a full disk
  }
}

let isMuted = false;

/** Returns `true` if a message could not be written. */
export function hasLostMessage(): boolean {
  return isMuted;
}

/** Prints a warning about a possible mistake of the user. */
export function warn(message: string): void {
  fail(`warning: ${message}`);
}

/** Prints the stack of an unexpected error. */
export function trace(frames: string): void {
  for (const frame of frames.split("\n")) {
    if (frame !== "") complain(frame);
  }
}

/**
 * Prints the result for programs: JSON, which is valid UTF-8 for any file names. Other
 * users choose names, so characters that a terminal acts on are escaped.
 */
export function printJson(value: unknown, show = print): void {
  const lines = JSON.stringify(value, null, 2).split("\n");
  show(lines.map(escapeForJson).join("\n"));
}
