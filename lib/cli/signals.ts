/** Handles signals that ask this program to end. */
import { readText } from "../sys/sysfs.ts";

/** Signals that are caught, and their numbers on every architecture of Deno. */
const NUMBERS = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGTERM: 15 } as const;

/** A signal that asks a program to end. */
export type EndingSignal = keyof typeof NUMBERS;

/** Error for a signal that asked this program to end. */
export class Interruption extends Error {
  override readonly name = "Interruption";
  /** The signal that was received. */
  readonly signal: EndingSignal;

  constructor(signal: EndingSignal) {
    super(signal);
    this.signal = signal;
  }
}

/** Returns the exit status that a shell reports for a program ended by a signal. */
export function exitStatusOf(signal: EndingSignal): number {
  return 128 + NUMBERS[signal];
}

/**
 * Calls `handler` for signals, which do not end this program until disposal. Signals that
 * were ignored from the start, by `nohup` or for a background job of a script, stay
 * ignored, even after disposal: one may be on its way then.
 */
export class SignalHandler implements Disposable {
  readonly #listeners: { signal: EndingSignal; listener: () => void }[];

  constructor(
    signals: readonly EndingSignal[],
    handler: (signal: EndingSignal) => void,
  ) {
    const ignored = signalSet("self", "SigIgn");
    const isIgnored = (signal: EndingSignal): boolean =>
      (ignored >> BigInt(NUMBERS[signal] - 1) & 1n) !== 0n;
    this.#listeners = signals.filter((signal) => !isIgnored(signal))
      .map((signal) => ({ signal, listener: () => handler(signal) }));
    for (const { signal, listener } of this.#listeners) {
      Deno.addSignalListener(signal, listener);
    }
    // The runtime catches signals that were ignored as soon as it listens to any, and
    // ends by those without a listener.
    for (const signal of signals.filter(isIgnored)) {
      Deno.addSignalListener(signal, ignore);
    }
  }

  [Symbol.dispose](): void {
    for (const { signal, listener } of this.#listeners) {
      Deno.removeSignalListener(signal, listener);
    }
  }
}

function ignore(): void {}

/** Reads a set of signals in `/proc/PID/status`, the lowest bit for signal 1. Returns an empty set if there is none. */
export function signalSet(pid: number | "self", name: string): bigint {
  const status = readText(`/proc/${pid}/status`);
  if (typeof status === "number") return 0n;
  const digits = new RegExp(`^${name}:\\s*([0-9a-f]+)$`, "m").exec(status)?.[1];
  return digits === undefined ? 0n : BigInt(`0x${digits}`);
}

/** Makes signals abort waiting instead of ending this program, until disposal. */
export class Interruptible implements Disposable {
  readonly #controller = new AbortController();
  readonly #handler = new SignalHandler(
    ["SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP"],
    (signal) => this.#controller.abort(new Interruption(signal)),
  );

  /** Signal that is aborted with an {@linkcode Interruption}. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /**
   * Throws if a signal was received.
   *
   * @throws {Interruption} If a signal was received.
   */
  async throwIfInterrupted(): Promise<void> {
    await handlersHaveRun();
    this.signal.throwIfAborted();
  }

  [Symbol.dispose](): void {
    this.#handler[Symbol.dispose]();
  }
}

/**
 * Waits for the handlers of received signals. They run in the event loop, not between
 * consecutive system calls.
 */
export async function handlersHaveRun(): Promise<void> {
  await new Promise<void>((resolve) => setTimeout(resolve));
}
