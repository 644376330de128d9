/** Which device gets the file: races with others are retried, within bounds. */
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

/** What others can do to a device between its number being found and the file being bound. */
const RETRIED_ERRNOS = [EBUSY, ENXIO, ENODEV, ENOENT, EACCES, EAGAIN];
const MAX_TRIES = 64;
const MAX_MILLISECONDS = 2000;
/** So often it is tried in any case: on a machine under load a pause may take all the time there is. */
const MIN_TRIES = 32;
/** So often it is tried again at once. */
const TRIES_WITHOUT_DELAY = 4;
const PAUSE_MILLISECONDS = 4;

/** Binds one particular device. */
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

/** Binds the first device that can be had. */
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
            `tried ${candidates.count} loop devices ${tries} times; the last answer: ${error.message}`,
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
 * Which device to try next. `LOOP_CTL_GET_FREE` gives the lowest unbound one, and
 * gives it for ever when it cannot be bound: somebody holds it exclusively, or its
 * node is missing. So a number that has failed twice is set aside.
 */
class Candidates {
  static readonly #MAX_ADDED = 2;
  readonly #control: LoopControl;
  readonly #failures = new Map<number, number>();
  /** How many failures set a number aside. */
  #patience = 2;
  #added = 0;

  constructor(control: LoopControl) {
    this.#control = control;
  }

  /** How many devices were tried. */
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
    const other = others.find((minor) =>
      this.#isEligible(minor) && !isBound(minor)
    );
    if (other !== undefined) return other;
    if (this.#added < Candidates.#MAX_ADDED) {
      this.#added++;
      return this.#control.add();
    }
    this.#patience += 2; // all over again
    return free;
  }

  #isEligible(minor: number): boolean {
    return (this.#failures.get(minor) ?? 0) < this.#patience;
  }
}
