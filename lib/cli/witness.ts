/** Distinguishes a signal to the whole process group from a signal to this process alone. */
import { readText } from "../sys/sysfs.ts";
import { signalSet } from "./signals.ts";

/** A terminal sends its signals to all processes of its foreground group. */
export interface Terminal {
  /** `true` if this process has a terminal. */
  readonly exists: boolean;
  /** `true` if this process is in the foreground group now. */
  readonly isOurs: boolean;
}

/** Finds the terminal of this process, even if its standard input is redirected. */
export function terminal(): Terminal {
  const stat = readText("/proc/self/stat");
  if (typeof stat === "number") return { exists: false, isOurs: false };
  // The fields follow the command name, which may contain any characters.
  const [, , group, , device, foreground] = stat
    .slice(stat.lastIndexOf(")") + 2).split(" ");
  return { exists: device !== "0", isOurs: foreground === group };
}

/**
 * A process of the same group that any signal ends. The runtime does not report the
 * sender of a signal. A signal that ended the witness was sent to the whole group.
 */
export class Witness implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  #hasEnded = false;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
    process.status.then(() => this.#hasEnded = true);
  }

  /** Starts a witness. Returns `undefined` if it may not or cannot be run. */
  static start(): Witness | undefined {
    const permission = { name: "run", command: "sh" } as const;
    if (Deno.permissions.querySync(permission).state !== "granted") return;
    try {
      return new Witness(
        new Deno.Command("sh", {
          // Reads from this process, so that it ends with it. SIGQUIT must not dump core.
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

  /** Returns `true` if a signal has reached the witness. A stopped witness keeps the signal pending. */
  isSignalled(): boolean {
    if (this.#hasEnded) return true;
    const { pid } = this.#process;
    const pending = signalSet(pid, "SigPnd") | signalSet(pid, "ShdPnd");
    return pending !== 0n || hasExited(pid);
  }

  /** Ends the witness. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // The witness has already ended.
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
