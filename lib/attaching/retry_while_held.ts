/** Retries changes of a device that another process holds for a moment. */
import type { LoopError } from "../errors.ts";
import { EBUSY } from "../sys/errno.ts";
import { BRIEF_USE, pollUntil, type WaitOptions } from "../waiting.ts";
import { isErrno } from "./release.ts";

/**
 * Retries a change that is refused with `EBUSY`. From Linux 6.19 on,
 * `LOOP_SET_STATUS64` is refused while a program holds the disk or a partition
 * exclusively, as mkfs and fsck do for a moment.
 *
 * @throws {LoopError} If the device is held for longer (`EBUSY`).
 */
export async function retryWhileHeld<T>(
  change: () => T | Promise<T>,
  { timeout, signal }: WaitOptions = {
    timeout: BRIEF_USE,
    signal: undefined,
  },
): Promise<T> {
  let done: { result: T } | undefined;
  let refusal: LoopError | undefined;
  await pollUntil(async () => {
    try {
      done = { result: await change() };
    } catch (error) {
      if (!isErrno(error, EBUSY)) throw error;
      refusal = error;
    }
    return done !== undefined;
  }, { timeout: Math.min(BRIEF_USE, timeout), signal });
  if (done === undefined) throw refusal;
  return done.result;
}
