/** Names on stderr the processes and mounts that a command waits for. */
import { escapeControls, printable } from "../errors.ts";
import { columns, fail } from "./output.ts";
import { clip } from "./text.ts";

/** A wait that takes too long to pass without a word. */
export interface Wait {
  /** Device or directory, as the user named it. */
  readonly name: string;
  /** In milliseconds. */
  readonly timeout: number;
  /** Describes who is waited for; nothing if nobody is. */
  whoUses(): Promise<string[]>;
  /** Follows "after that": `the kernel detaches it at the last close`. */
  readonly outcome: string;
}

/** A wait until a device is closed by everybody else. */
export function waitForDevice(minor: number, timeout: number): Wait {
  return {
    name: `/dev/loop${minor}`,
    timeout,
    whoUses: () => whoHolds(minor),
    outcome: "the kernel detaches it at the last close",
  };
}

async function whoHolds(minor: number): Promise<string[]> {
  // Most commands end before these are needed.
  const { describeHolders } = await import("../describe_holder.ts");
  const { findHolders } = await import("../holder_search.ts");
  const { holders, complete } = await findHolders(minor);
  const others = holders.filter((holder) =>
    !("pid" in holder) || holder.pid !== Deno.pid
  );
  return describeHolders({ holders: others, complete });
}

/** Until the first message, and between two on a terminal, in milliseconds. */
const INTERVAL = 1000;

/**
 * Runs `work`. If it takes longer than a second, prints whom it waits for: one line, which
 * is replaced every second on a terminal, and removed when the work is done.
 */
export async function withWaitingMessage<T>(
  wait: Wait,
  work: () => Promise<T>,
): Promise<T> {
  const line = Deno.stderr.isTerminal() ? new StatusLine() : undefined;
  const end = performance.now() + wait.timeout;
  let isDone = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const tell = async (): Promise<void> => {
    const message = await describe(wait, end - performance.now());
    if (isDone) return;
    if (line === undefined) return fail(message);
    line.show(message);
    timer = setTimeout(tell, INTERVAL);
  };
  timer = setTimeout(tell, INTERVAL);
  try {
    return await work();
  } finally {
    isDone = true;
    clearTimeout(timer);
    line?.clear();
  }
}

async function describe(
  { name, outcome, whoUses }: Wait,
  left: number,
): Promise<string> {
  // Whatever is wrong with the search, the wait goes on.
  const who = await whoUses().catch(() => ["somebody else uses it"]);
  // Nobody else: then it is the file that takes its time.
  if (who.length === 0) return `waiting for the data of ${printable(name)}`;
  const seconds = Math.max(1, Math.ceil(left / 1000));
  return `waiting up to ${seconds} s for ${printable(name)}: ${
    who.join("; ")
  }; after that ${outcome}`;
}

/** A line on a terminal, which is replaced. */
class StatusLine {
  #isShown = false;

  /** Shows a message, cut to the width of the terminal. */
  show(message: string): void {
    this.#isShown = true;
    const room = columns() - 1;
    this.#write(clip(`loopdev: ${escapeControls(message)}`, room));
  }

  /** Removes the message, if there is one. */
  clear(): void {
    if (this.#isShown) this.#write("");
  }

  #write(text: string): void {
    try {
      Deno.stderr.writeSync(new TextEncoder().encode(`\r${text}\x1b[K`));
    } catch {
      // The terminal has gone; the wait goes on.
    }
  }
}
