/** Signals that ask this program to end. */
import { readText } from "../sys/sysfs.ts";

/** The signals that are caught, and their numbers on every architecture of Deno. */
const NUMBERS = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGTERM: 15 } as const;

/** A signal that asks a program to end. */
export type EndingSignal = keyof typeof NUMBERS;

/** This program was asked to end. */
export class Interruption extends Error {
  override readonly name = "Interruption";
  /** The signal that asked for it. */
  readonly signal: EndingSignal;

  constructor(signal: EndingSignal) {
    super(signal);
    this.signal = signal;
  }
}

/** The exit status that a shell gives a program that a signal has ended. */
export function exitStatusOf(signal: EndingSignal): number {
  return 128 + NUMBERS[signal];
}

/**
 * Calls `handler` for a signal, which then does not end this program, until disposal.
 * One that was ignored from the start, by `nohup` or for a job in the background of a
 * script, stays ignored.
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
    this.#listeners = signals.map((signal) => ({
      signal,
      // The runtime catches more signals than it is asked to, ignored ones too, and
      // ends by those that nobody listens to.
      listener: isIgnored(signal) ? () => {} : () => handler(signal),
    }));
    for (const { signal, listener } of this.#listeners) {
      Deno.addSignalListener(signal, listener);
    }
  }

  [Symbol.dispose](): void {
    for (const { signal, listener } of this.#listeners) {
      Deno.removeSignalListener(signal, listener);
    }
  }
}

/** A set of signals in `/proc/PID/status`, the lowest bit for signal 1; empty where there is none. */
export function signalSet(pid: number | "self", name: string): bigint {
  const status = readText(`/proc/${pid}/status`);
  if (typeof status === "number") return 0n;
  const digits = new RegExp(`^${name}:\\s*([0-9a-f]+)$`, "m").exec(status)?.[1];
  return digits === undefined ? 0n : BigInt(`0x${digits}`);
}

/** Signals do not end this program, but abort what it waits for, until disposal. */
export class Interruptible implements Disposable {
  readonly #controller = new AbortController();
  readonly #handler = new SignalHandler(
    ["SIGINT", "SIGTERM", "SIGHUP"],
    (signal) => this.#controller.abort(new Interruption(signal)),
  );

  /** Aborted with an {@linkcode Interruption}. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /**
   * Throws when a signal has come.
   *
   * @throws {Interruption}
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
 * Waits for the handlers of signals that have come: they run when the event loop turns,
 * and not while system calls follow each other.
 */
export async function handlersHaveRun(): Promise<void> {
  await new Promise<void>((resolve) => setTimeout(resolve));
}
