/** Errors that end the program with a message and exit status 1. */
import { LoopError } from "../errors.ts";
import { errnoMessage } from "../sys/errno.ts";
import type { ByteString } from "./byte_string.ts";

/**
 * Error with the message of losetup, without the name of the program; empty if losetup
 * prints nothing.
 */
export class Failure extends Error {
  override readonly name = "Failure";

  constructor(message: ByteString = "") {
    super(message);
  }
}

/**
 * Creates the error for a failed system call, from what was tried and the error number.
 */
export function systemFailure(what: ByteString, errno: number): Failure {
  return new Failure(`${what}: ${errorText(errno)}`);
}

/** Returns the text of the C library for an error number. */
export function errorText(errno: number): string {
  const message = errnoMessage(errno);
  return message.charAt(0).toUpperCase() + message.slice(1);
}

/** Runs an action. If the kernel refuses it, throws a failure that starts with `what`. */
export function orFail<T>(what: ByteString, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (error instanceof LoopError) throw systemFailure(what, error.errno);
    throw error;
  }
}
