/** Waiting for others, within limits. */

/** How long to wait. */
export interface WaitOptions {
  /** In milliseconds. */
  readonly timeout: number;
  /** Ends the waiting. */
  readonly signal: AbortSignal | undefined;
}

/** What is waited where nothing is said, in milliseconds. */
export const DEFAULT_TIMEOUT = 5000;

/** How long udev, mkfs or fsck may use a device that is to be changed, in milliseconds. */
export const BRIEF_USE = 500;

const FIRST_PAUSE = 1;
const LONGEST_PAUSE = 20;

/** Looks until something is so, first at once. Gives the number of looks; `undefined` when the time is up. */
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

/** So long the event loop may be stopped at once, in milliseconds. */
const SLICE = 8;

/** Work in slices: the event loop goes on in between. */
export class Slices {
  #end = performance.now() + SLICE;

  /** Whether others have waited for long enough. */
  get isTired(): boolean {
    return performance.now() > this.#end;
  }

  /** Lets others run. */
  async breathe(): Promise<void> {
    await sleep(0, undefined);
    this.#end = performance.now() + SLICE;
  }
}

/** A pause that an abort ends. */
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

/** Settles as the promise does, or rejects at an abort, whatever comes of the promise. */
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

/** What the promise gives, or `undefined` when it takes longer; whatever comes of it then is left to the caller. */
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
