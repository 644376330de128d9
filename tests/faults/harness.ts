/** Injects faults into the system calls of another process with strace. */
import { assert } from "@std/assert";
import { lines } from "../device/support.ts";
import type { Answer } from "./child.ts";

/** The system calls of the library, and the errors of each. */
export const ERRORS: Record<string, readonly string[]> = {
  openat: [
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EACCES",
    "EPERM",
    "ENOENT",
    "ENXIO",
    "ENODEV",
    "EBUSY",
    "EROFS",
    "EINTR",
    "EIO",
  ],
  ioctl: [
    "EIO",
    "EBUSY",
    "EAGAIN",
    "EINTR",
    "ENXIO",
    "ENODEV",
    "ENOMEM",
    "EINVAL",
    "EPERM",
    "EACCES",
    "ENOSPC",
  ],
  pread64: ["EIO", "EINTR", "ENOMEM", "ENODEV", "EAGAIN"],
  statx: ["EACCES", "ENOMEM", "ENOENT", "EIO", "EINTR"],
  getdents64: ["EIO", "ENOMEM", "ENOENT", "EINTR"],
  "sync_file_range": ["EIO", "ENOSPC", "EINTR", "ENOMEM"],
  fsync: ["EIO", "ENOSPC", "EINTR"],
  fcntl: ["ENOLCK", "EAGAIN", "EACCES", "EINTR", "EINVAL"],
  mkdirat: ["EACCES", "ENOSPC", "EROFS", "EINTR"],
  mknodat: ["EPERM", "EEXIST", "ENOSPC", "EROFS", "EINTR"],
  readlinkat: ["EACCES", "ENOENT", "ENOMEM", "EINTR"],
  fsopen: ["ENODEV", "EPERM", "EMFILE", "ENOMEM"],
  fsconfig: ["EINVAL", "EIO", "EBUSY", "ENOMEM", "EROFS"],
  fsmount: ["ENOMEM", "EPERM", "EMFILE", "EBUSY"],
  "move_mount": ["EINVAL", "ENOENT", "EPERM", "ENOMEM"],
  umount2: ["EBUSY", "EINVAL", "EPERM", "ENOMEM"],
  syncfs: ["EIO", "ENOSPC", "EINTR"],
  fstatfs: ["EIO", "EINTR"],
};

const CALLS = Object.keys(ERRORS).join(",");

/** A child process, and strace while faults are injected. */
export class Child implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #answers: AsyncGenerator<string>;

  constructor() {
    this.#process = new Deno.Command(Deno.execPath(), {
      args: [
        ..."run -q --no-check --allow-all".split(" "),
        new URL("child.ts", import.meta.url).pathname,
      ],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#input = this.#process.stdin.getWriter();
    this.#answers = lines(this.#process.stdout);
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** Returns its open files by descriptor. */
  descriptors(): string[] {
    return [...Deno.readDirSync(`/proc/${this.pid}/fd`)].map(({ name }) => {
      try {
        return Deno.readLinkSync(`/proc/${this.pid}/fd/${name}`);
      } catch {
        return "";
      }
    }).filter((target) =>
      /loop|\/sys\/|\/proc\/|\.img|memfd|^\/$|fscontext/.test(target)
    );
  }

  /** Sends a command. Returns `undefined` if the child dies of it. */
  async tell(command: unknown): Promise<Answer | undefined> {
    try {
      await this.#input.write(
        new TextEncoder().encode(`${JSON.stringify(command)}\n`),
      );
      const { value } = await this.#answers.next();
      return value === undefined ? undefined : JSON.parse(value);
    } catch {
      return undefined;
    }
  }

  /** Returns its threads other than the first, which make nonblocking calls. */
  #otherThreads(): string[] {
    return [...Deno.readDirSync(`/proc/${this.pid}/task`)]
      .map(({ name }) => name).filter((name) => name !== `${this.pid}`);
  }

  /**
   * Sends a command under strace, with an injection (`ioctl:error=EIO:when=2`) or
   * without, into the first thread or into the others. Also returns the trace.
   */
  async tellTraced(
    command: unknown,
    injection: string | undefined,
    log: string,
    threads: "first" | "others" = "first",
  ): Promise<{ answer: Answer | undefined; trace: string }> {
    const traced = threads === "first" ? [`${this.pid}`] : this.#otherThreads();
    const strace = new Deno.Command("strace", {
      args: [
        ...traced.flatMap((thread) => ["-p", thread]),
        "-o",
        log,
        "-e",
        `trace=${CALLS}`,
        ...(injection === undefined ? [] : ["-e", `inject=${injection}`]),
      ],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const messages = lines(strace.stderr);
    const attached = (await messages.next()).value ?? "";
    assert(attached.includes("attached"), attached);
    // It says that of each thread.
    for (let seen = 1; seen < traced.length; seen++) await messages.next();
    const answer = await this.tell(command);
    try {
      strace.kill("SIGINT");
    } catch {
      // it ended with the child
    }
    await strace.status;
    for await (const _ of messages);
    return { answer, trace: Deno.readTextFileSync(log) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close().catch(() => {});
    await this.#process.status;
    for await (const _ of this.#answers);
  }
}

/** Counts the calls of each system call. */
export function countCalls(trace: string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const [, call] of trace.matchAll(/^(?:\d+ +)?(\w+)\(/gm)) {
    if (!Object.hasOwn(ERRORS, call!)) continue; // the call in progress when strace attached
    counts.set(call!, (counts.get(call!) ?? 0) + 1);
  }
  return counts;
}
