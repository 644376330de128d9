/** Runs losetup as a program: with the exact bytes of its arguments, and its streams. */
import "../sys/open_on_use.ts";
import { rawArguments } from "../sys/process_arguments.ts";
import { readBytes } from "../sys/sysfs.ts";
import { type ByteString, fromBytes, fromText } from "./byte_string.ts";
import { losetup } from "./losetup.ts";

/**
 * Runs losetup with the given number of last arguments of the process, and returns the
 * exit status.
 */
export async function main(args: readonly string[]): Promise<number> {
  const output: Uint8Array[] = [];
  let isMuted = false;
  // A message that cannot be written must not end the work, or hide the result.
  const complain = (bytes: Uint8Array) => {
    try {
      write(Deno.stderr, bytes);
    } catch {
      isMuted = true;
    }
  };
  const status = await losetup(exactArguments(args), {
    stdout: (bytes) => output.push(bytes),
    stderr: complain,
    variable: (name) => readEnvironment().get(name),
  });
  try {
    for (const bytes of output) write(Deno.stdout, bytes);
    return status || Number(isMuted);
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return BROKEN_PIPE;
    // "No space left on device (os error 28)"
    const why = error instanceof Error
      ? error.message.replace(/ \(os error \d+\)$/, "")
      : error;
    complain(new TextEncoder().encode(`losetup: write error: ${why}\n`));
    return 1;
  }
}

/** Exit status that a shell reports for a program killed by SIGPIPE. */
const BROKEN_PIPE = 128 + 13;

/**
 * Returns the arguments exactly as given, because `Deno.args` replaces bytes that are
 * not UTF-8.
 */
function exactArguments(args: readonly string[]): ByteString[] {
  if (!args.some((arg) => arg.includes("\ufffd"))) return args.map(fromText);
  const raw = rawArguments();
  if (raw.length < args.length) {
    throw new Error("Cannot read the arguments: they are too long");
  }
  return raw.slice(raw.length - args.length).map(fromBytes);
}

function write(
  stream: { writeSync(bytes: Uint8Array): number },
  bytes: Uint8Array,
): void {
  for (let at = 0; at < bytes.length;) {
    at += stream.writeSync(bytes.subarray(at));
  }
}

/** Reads the environment of the process, because `Deno.env` would need a permission. */
function readEnvironment(): Map<string, string> {
  const bytes = readBytes("/proc/self/environ");
  const text = typeof bytes === "number" ? "" : fromBytes(bytes);
  return new Map(
    text.split("\0").map((entry): [string, string] => {
      const end = entry.indexOf("=");
      return [entry.slice(0, end), entry.slice(end + 1)];
    }),
  );
}
