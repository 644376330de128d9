/** What ends the program: a message, and exit status 1. */
import { LoopError } from "../errors.ts";
import { errnoMessage } from "../sys/errno.ts";
import type { ByteString } from "./byte_string.ts";

/** The message is what losetup says, without the name of the program; none where it says nothing. */
export class Failure extends Error {
  override readonly name = "Failure";

  constructor(message: ByteString = "") {
    super(message);
  }
}

/** A failed system call: what was tried, and why it failed. */
export function systemFailure(what: ByteString, errno: number): Failure {
  return new Failure(`${what}: ${errorText(errno)}`);
}

/** An error number as the C library says it. */
export function errorText(errno: number): string {
  const message = errnoMessage(errno);
  return message.charAt(0).toUpperCase() + message.slice(1);
}

/** Does something that the kernel may refuse; then the failure begins with `what`. */
export function orFail<T>(what: ByteString, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (error instanceof LoopError) throw systemFailure(what, error.errno);
    throw error;
  }
}
