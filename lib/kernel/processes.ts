/** Enumerates the processes in `/proc` without blocking the event loop. */
import { statAt } from "../sys/stat.ts";
import { FileDescriptor } from "./file_descriptor.ts";
import { throwUnless } from "./loop_sysfs.ts";
import { EACCES, EAGAIN, ENOENT, ESRCH } from "../sys/errno.ts";
import { AT_FDCWD, cString, shareFiles } from "../sys/libc.ts";
import { namesIn, openDirectoryAt, readLink, readText } from "../sys/sysfs.ts";
import { Slices } from "../waiting.ts";

/**
 * Time limit of a search in milliseconds: other users decide how much there is to
 * examine.
 */
const MAX_TIME = 3000;
/** Limits the time of a search, and lets the event loop run in between. */
export class Pace extends Slices {
  readonly #deadline = performance.now() + MAX_TIME;
  readonly #signal: AbortSignal | undefined;

  constructor(signal?: AbortSignal) {
    super();
    this.#signal = signal;
  }

  /** `true` if the time is up, or nobody waits for the result any longer. */
  get isOver(): boolean {
    return performance.now() > this.#deadline || this.#signal?.aborted === true;
  }
}

/** A process to examine. */
export class Process {
  readonly pid: number;
  /** Descriptor of its directory in `/proc`, or of that of a thread. */
  readonly directory: number;
  #command: string | undefined;

  /** The caller keeps ownership of the directory. */
  constructor(pid: number, directory: number) {
    this.pid = pid;
    this.directory = directory;
  }

  /** The command name, up to 15 bytes. */
  get command(): string {
    if (this.#command === undefined) {
      const text = readText("comm", this.directory);
      this.#command = typeof text === "string" ? text : "";
    }
    return this.#command;
  }

  /** `true` if the process has exited and its parent has noticed. */
  get hasGone(): boolean {
    const text = readText("comm", this.directory);
    return text === -ENOENT || text === -ESRCH;
  }
}

/**
 * Enumerates the visible processes, this one first, and the negative error numbers of
 * those that are not accessible. Each one is valid until the next.
 *
 * @throws {LoopError} If there is no `/proc`.
 */
export async function* allProcesses(
  pace: Pace,
): AsyncGenerator<Process | number> {
  const fd = openDirectoryAt("/proc");
  if (fd < 0) return throwUnless([], fd, "/proc");
  using proc = new FileDescriptor(fd);
  // If the first process is hidden (hidepid=2), so are those of other users.
  if (statAt(AT_FDCWD, cString("/proc/1")) === -ENOENT) yield -EACCES;
  const own = readLink("self", proc.fd);
  if (typeof own === "string") yield* processOf(own, proc.fd, pace);
  for (const names of namesIn(proc.fd)) {
    if (typeof names === "number") return throwUnless([], names, "/proc");
    for (const name of names) {
      if (!/^\d+$/.test(name) || name === own) continue;
      if (pace.isTired) await pace.breathe();
      yield* processOf(name, proc.fd, pace);
    }
  }
}

async function* processOf(
  name: string,
  proc: number,
  pace: Pace,
): AsyncGenerator<Process | number> {
  const fd = openDirectoryAt(name, proc);
  if (fd < 0) return yield fd;
  using directory = new FileDescriptor(fd);
  const pid = Number(name);
  const hasFirst = !hasEnded(directory.fd);
  if (hasFirst) yield new Process(pid, directory.fd);
  yield* threadsOf(pid, directory.fd, hasFirst, pace);
}

/** Returns `true` if a process or thread is a zombie, which holds nothing. */
function hasEnded(directory: number): boolean {
  return readLink("cwd", directory) === -ENOENT;
}

/**
 * Returns `true` if a thread of a process is in an uninterruptible wait (`D`), such as
 * for a disk or a file server, or if there are too many to examine. Kernel threads are
 * ignored, because for them this is normal.
 */
export async function hasWaiting(
  directory: number,
  slices: Slices,
): Promise<boolean> {
  const fd = openDirectoryAt("task", directory);
  if (fd < 0) return false;
  using tasks = new FileDescriptor(fd);
  let count = 0;
  for (const names of namesIn(tasks.fd)) {
    if (typeof names === "number") return false;
    for (const name of names) {
      if (++count > MAX_THREADS) return true;
      if (slices.isTired) await slices.breathe();
      const text = readText(`${name}/stat`, tasks.fd);
      if (typeof text === "number") continue;
      // "12 (a command) D 1 12 12 0 -1 4194560 …"
      const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
      const isKernel = (Number(fields[6]) & PF_KTHREAD) !== 0;
      if (fields[0] === "D" && !isKernel) return true;
    }
  }
  return false;
}

/** Flag of kernel threads (`linux/sched.h`). */
const PF_KTHREAD = 0x200000;

/** Maximum number of threads of a process to examine. */
const MAX_THREADS = 10_000;

/**
 * Enumerates the threads that have their own descriptors or directories. A process
 * whose first thread has exited lives on in another one, so one of them is included.
 */
async function* threadsOf(
  pid: number,
  directory: number,
  hasFirst: boolean,
  pace: Pace,
): AsyncGenerator<Process | number> {
  const fd = openDirectoryAt("task", directory);
  if (fd < 0) return;
  using tasks = new FileDescriptor(fd);
  let [count, known] = [0, hasFirst ? pid : 0];
  for (const names of namesIn(tasks.fd)) {
    if (typeof names === "number") return;
    for (const name of names) {
      const id = Number(name);
      if (id === pid) continue;
      if (++count > MAX_THREADS) return yield -EAGAIN;
      if (pace.isOver) return;
      if (pace.isTired) await pace.breathe();
      // If that cannot be determined, every thread is examined.
      if (known !== 0 && shareFiles(known, id) === true) continue;
      const fd = openDirectoryAt(name, tasks.fd);
      if (fd < 0) continue;
      using thread = new FileDescriptor(fd);
      if (hasEnded(thread.fd)) continue;
      if (known === 0) known = id;
      yield new Process(pid, thread.fd);
    }
  }
}
