/** What went wrong, for people. */
import { LoopError } from "../errors.ts";
import { fail, OutputError, trace } from "./output.ts";
import { exitStatusOf, Interruption } from "./signals.ts";
import { messageOf } from "./words.ts";

/** One line for what is expected to go wrong. What is not keeps its stack. */
export function report(error: unknown): number {
  if (error instanceof SuppressedError) { // two devices could not be detached
    report(error.suppressed);
    return report(error.error);
  }
  // Whoever interrupts knows.
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
