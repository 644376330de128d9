/**
 * Chooses a device for a file, retrying within limits when another process takes it
 * first.
 */
import { sleep } from "../waiting.ts";
import { LoopError } from "../errors.ts";
import type { LoopControl } from "../kernel/loop_control.ts";
import {
  existingMinors,
  hasSysfs,
  isBound,
  rdevOf,
} from "../kernel/loop_sysfs.ts";
import { openControl } from "../kernel/nodes.ts";
import {
  EACCES,
  EAGAIN,
  EBUSY,
  EEXIST,
  ENODEV,
  ENOENT,
  ENXIO,
} from "../sys/errno.ts";

/** Errors caused by another process taking the device first; these are retried. */
const RETRIED_ERRNOS = [EBUSY, ENXIO, ENODEV, ENOENT, EACCES, EAGAIN];
const MAX_TRIES = 64;
const MAX_MILLISECONDS = 2000;
/**
 * Minimum number of attempts, even past the deadline: on a loaded machine, a single
 * pause can use up the time limit.
 */
const MIN_TRIES = 32;
/** Number of attempts made without a pause in between. */
const TRIES_WITHOUT_DELAY = 4;
const PAUSE_MILLISECONDS = 4;

/** Binds a particular device. */
export function bindMinor<T>(
  tryDevice: (minor: number) => T,
  minor: number,
): T {
  if (rdevOf(minor) === undefined) {
    using control = openControl();
    try {
      control.add(minor);
    } catch (error) {
      const exists = error instanceof LoopError && error.errno === EEXIST;
      if (!exists) throw error;
    }
  }
  return tryDevice(minor);
}

/** Binds the first device that can be bound. */
export async function bindFirstFree<T>(
  tryDevice: (minor: number) => T,
  file: string,
  signal: AbortSignal | undefined,
): Promise<T> {
  using control = openControl();
  const candidates = new Candidates(control);
  let deadline = Infinity;
  for (let tries = 1;; tries++) {
    const minor = candidates.next();
    try {
      return tryDevice(minor);
    } catch (error) {
      if (
        !(error instanceof LoopError) || !RETRIED_ERRNOS.includes(error.errno)
      ) {
        throw error;
      }
      candidates.failed(minor);
      if (tries === 1) deadline = performance.now() + MAX_MILLISECONDS;
      const isLate = tries >= MIN_TRIES && performance.now() >= deadline;
      if (tries >= MAX_TRIES || isLate) {
        throw new LoopError(`Cannot attach ${file}`, {
          errno: error.errno,
          operation: error.operation,
          path: error.path,
          hint:
            `made ${tries} attempts on ${candidates.count} loop devices; the last error: ${error.message}`,
        });
      }
    }
    if (tries >= TRIES_WITHOUT_DELAY) {
      await sleep(1 + Math.random() * PAUSE_MILLISECONDS, signal);
    }
    signal?.throwIfAborted();
  }
}

/**
 * Numbers of the devices to try. `LOOP_CTL_GET_FREE` returns the lowest unbound device,
 * and keeps returning it if it cannot be bound because another process holds it
 * exclusively or its node is missing. A number that has failed twice is therefore
 * skipped.
 */
class Candidates {
  static readonly #MAX_ADDED = 2;
  readonly #control: LoopControl;
  readonly #failures = new Map<number, number>();
  /** Number of failures after which a number is skipped. */
  #patience = 2;
  #added = 0;

  constructor(control: LoopControl) {
    this.#control = control;
  }

  /** The number of devices tried. */
  get count(): number {
    return this.#failures.size;
  }

  failed(minor: number): void {
    this.#failures.set(minor, (this.#failures.get(minor) ?? 0) + 1);
  }

  next(): number {
    const free = this.#control.getUnbound();
    if (this.#isEligible(free)) return free;
    const others = hasSysfs() ? existingMinors() : [];
    // Processes that all try the lowest one would keep taking it from each other.
    if (this.count > 1) shuffle(others);
    const other = others.find((minor) =>
      this.#isEligible(minor) && !isBound(minor)
    );
    if (other !== undefined) return other;
    if (this.#added < Candidates.#MAX_ADDED) {
      this.#added++;
      return this.#control.add();
    }
    this.#patience += 2; // try all of them again
    return free;
  }

  #isEligible(minor: number): boolean {
    return (this.#failures.get(minor) ?? 0) < this.#patience;
  }
}

/** Puts items into random order. */
function shuffle(items: unknown[]): void {
  for (let last = items.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [items[last], items[other]] = [items[other], items[last]];
  }
}
