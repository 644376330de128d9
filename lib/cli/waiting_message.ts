/** Names on stderr the processes and mounts that a command waits for. */
import { escapeControls, printable } from "../errors.ts";
import type { MountedFileSystem } from "../mounted.ts";
import { columns, fail } from "./output.ts";
import { clip } from "./text.ts";

/** A wait that may take long enough to need a message. */
export interface Wait {
  /** Device or directory, as the user named it. */
  readonly name: string;
  /** Timeout in milliseconds. */
  readonly timeout: number;
  /** Describes the users that delay the work. Returns nothing if there are none. */
  whoUses(): Promise<string[]>;
  /** Outcome of a timeout, to follow "after that": `the kernel detaches it at the last close`. */
  readonly outcome: string;
}

/** Describes a wait until all other processes have closed a device. */
export function waitForDevice(minor: number, timeout: number): Wait {
  return {
    name: `/dev/loop${minor}`,
    timeout,
    whoUses: () => whoHolds(minor),
    outcome: "the kernel detaches it at the last close",
  };
}

/** Describes a wait until a file system is no longer in use. */
export function waitForMount(
  mounted: MountedFileSystem,
  timeout: number,
  outcome: string,
): Wait {
  const whoUses = () => mounted.whoUses();
  return { name: mounted.path, timeout, whoUses, outcome };
}

async function whoHolds(minor: number): Promise<string[]> {
  // Most commands end before these modules are needed.
  const { describeHolders } = await import("../describe_holder.ts");
  const { findHolders } = await import("../kernel/holder_search.ts");
  const { holders, complete } = await findHolders(minor);
  const others = holders.filter((holder) =>
    !("pid" in holder) || holder.pid !== Deno.pid
  );
  return describeHolders({ holders: others, complete });
}

/** Time until the first message, and between messages on a terminal, in milliseconds. */
const INTERVAL = 1000;

/**
 * Runs `work`. If it takes longer than a second, prints one line that names the users it
 * waits for. On a terminal, the line is replaced every second and removed at the end.
 * Elsewhere, a wait for data is followed by one more line if users delay it after that.
 */
export async function withWaitingMessage<T>(
  wait: Wait,
  work: () => Promise<T>,
): Promise<T> {
  const line = Deno.stderr.isTerminal() ? new StatusLine() : undefined;
  const end = performance.now() + wait.timeout;
  let isDone = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isFirst = true;
  const tell = async (): Promise<void> => {
    const { message, isUsed } = await describe(wait, end - performance.now());
    if (isDone) return;
    if (line !== undefined) line.show(message);
    else if (isFirst || isUsed) fail(message);
    isFirst = false;
    if (line !== undefined || !isUsed) timer = setTimeout(tell, INTERVAL);
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
): Promise<{ message: string; isUsed: boolean }> {
  // An error of the search must not end the wait.
  const who = await whoUses().catch(() => ["another process uses it"]);
  // Without users, the wait is for write-back to the file.
  if (who.length === 0) {
    const message = `waiting for the data of ${printable(name)}`;
    return { message, isUsed: false };
  }
  const seconds = Math.max(1, Math.ceil(left / 1000));
  const users = who.join("; ");
  const message = `waiting up to ${seconds} s for ${
    printable(name)
  }: ${users}; after that ${outcome}`;
  return { message, isUsed: true };
}

/** A line on a terminal that can be replaced. */
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
      // The wait goes on without a terminal.
    }
  }
}
