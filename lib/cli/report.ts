/** Reports errors to the user. */
import { LoopError } from "../errors.ts";
import { fail, OutputError, trace } from "./output.ts";
import { exitStatusOf, Interruption } from "./signals.ts";
import { messageOf } from "./words.ts";

/** Prints one line for an expected error, and the stack of an unexpected one. Returns the exit status. */
export function report(error: unknown): number {
  if (error instanceof SuppressedError) { // two devices could not be detached
    report(error.suppressed);
    return report(error.error);
  }
  // The user who interrupted needs no message.
  if (error instanceof Interruption) return exitStatusOf(error.signal);
  const isExpected = error instanceof LoopError ||
    error instanceof OutputError ||
    error instanceof RangeError || // a size that no number holds
    error instanceof Deno.errors.NotCapable ||
    error instanceof Deno.errors.NotSupported;
  if (isExpected) fail(messageOf(error));
  else {
    // The stack repeats the message, which may have lines of its own.
    const message = `${error}`;
    fail(message);
    const stack = error instanceof Error ? error.stack ?? "" : "";
    if (stack.startsWith(message)) trace(stack.slice(message.length));
  }
  return 1;
}
