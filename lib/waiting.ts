/** Waits with time limits and abort signals. */

/** Limits for waiting. */
export interface WaitOptions {
  /** Time limit in milliseconds. */
  readonly timeout: number;
  /** Signal used to abort the wait. */
  readonly signal: AbortSignal | undefined;
}

/** Default time limit in milliseconds. */
export const DEFAULT_TIMEOUT = 5000;

/**
 * Time that udev, mkfs or fsck may hold a device that is about to be changed, in
 * milliseconds.
 */
export const BRIEF_USE = 500;

/**
 * Longest call on another thread that may be repeated on this one to learn its error, in
 * milliseconds: the event loop stops for as long again.
 */
export const MAX_REPEATED_TIME = 20;

const FIRST_PAUSE = 1;
const LONGEST_PAUSE = 20;

/**
 * Polls until a condition is met, checking immediately first. Returns the number of
 * checks, or `undefined` on timeout.
 */
export async function pollUntil(
  isSo: () => boolean | Promise<boolean>,
  { timeout, signal }: WaitOptions,
): Promise<number | undefined> {
  let deadline;
  let pause = FIRST_PAUSE;
  for (let looks = 1;; looks++) {
    const answer = isSo();
    if (answer === true) return looks;
    deadline ??= performance.now() + timeout;
    if (await answer) return looks;
    signal?.throwIfAborted();
    const left = deadline - performance.now();
    if (left <= 0) return undefined;
    await sleep(Math.min(pause, left), signal);
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

/** Longest time to block the event loop, in milliseconds. */
const SLICE = 8;

/** Divides long work into slices, so that the event loop can run in between. */
export class Slices {
  #end = performance.now() + SLICE;

  /** `true` if the current slice is used up. */
  get isTired(): boolean {
    return performance.now() > this.#end;
  }

  /** Lets the event loop run, then starts a new slice. */
  async breathe(): Promise<void> {
    await sleep(0, undefined);
    this.#end = performance.now() + SLICE;
  }
}

/** Resolves after a delay. Rejects if the signal is aborted. */
export function sleep(
  milliseconds: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const abort = () => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/**
 * Settles like the promise, or rejects when the signal is aborted, regardless of the
 * promise.
 */
export async function abortable<T>(
  promise: Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (signal === undefined) return await promise;
  let abort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort!);
  }
}

/**
 * Resolves like the promise, or to `undefined` on timeout. The caller handles the
 * promise afterwards.
 */
export async function within<T>(
  promise: Promise<T>,
  milliseconds: number,
): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), milliseconds);
  });
  try {
    return await Promise.race([promise, timeout]);
  } finally {
    clearTimeout(timer);
  }
}
