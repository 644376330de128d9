/** Tells a signal that was sent to the whole process group from one to this process alone. */
import { readText } from "../sys/sysfs.ts";
import { signalSet } from "./signals.ts";

/** A terminal sends its signals to all processes of its foreground group. */
export interface Terminal {
  /** Whether this process has one. */
  readonly exists: boolean;
  /** Whether this process is in that group at present. */
  readonly isOurs: boolean;
}

/** The terminal of this process, wherever its standard input comes from. */
export function terminal(): Terminal {
  const stat = readText("/proc/self/stat");
  if (typeof stat === "number") return { exists: false, isOurs: false };
  // Behind the name, which may hold anything.
  const [, , group, , device, foreground] = stat
    .slice(stat.lastIndexOf(")") + 2).split(" ");
  return { exists: device !== "0", isOurs: foreground === group };
}

/**
 * A process of the same group that any signal ends. The runtime does not tell who has
 * sent a signal; what has ended the witness was for the whole group.
 */
export class Witness implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  #hasEnded = false;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
    process.status.then(() => this.#hasEnded = true);
  }

  /** A new one; `undefined` where it may not or cannot be run. */
  static start(): Witness | undefined {
    const permission = { name: "run", command: "sh" } as const;
    if (Deno.permissions.querySync(permission).state !== "granted") return;
    try {
      return new Witness(
        new Deno.Command("sh", {
          // Reads from us, so that it ends with us. SIGQUIT is to leave no core.
          args: ["-c", "ulimit -c 0; exec cat"],
          stdin: "piped",
          stdout: "null",
          stderr: "null",
        }).spawn(),
      );
    } catch {
      return;
    }
  }

  /** Whether a signal has reached it. One that is stopped keeps it until it goes on. */
  isSignalled(): boolean {
    if (this.#hasEnded) return true;
    const { pid } = this.#process;
    const pending = signalSet(pid, "SigPnd") | signalSet(pid, "ShdPnd");
    return pending !== 0n || hasExited(pid);
  }

  /** Ends it. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await this.#process.stdin.close().catch(() => {});
    await this.#process.status;
  }
}

function hasExited(pid: number): boolean {
  const stat = readText(`/proc/${pid}/stat`);
  if (typeof stat === "number") return true;
  const state = stat.charAt(stat.lastIndexOf(")") + 2);
  return state === "Z" || state === "X";
}
