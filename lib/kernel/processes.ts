/** The processes in `/proc`, one after the other, without stopping the event loop. */
import { statAt } from "../sys/stat.ts";
import { FileDescriptor } from "./file_descriptor.ts";
import { throwUnless } from "./loop_sysfs.ts";
import { EACCES, EAGAIN, ENOENT, ESRCH } from "../sys/errno.ts";
import { AT_FDCWD, cString, shareFiles } from "../sys/libc.ts";
import { namesIn, openDirectoryAt, readLink, readText } from "../sys/sysfs.ts";
import { Slices } from "../waiting.ts";

/** So long a search may take, in milliseconds: others decide how much there is to look at. */
const MAX_TIME = 3000;
/** How long a search goes on, and when it lets others run. */
export class Pace extends Slices {
  readonly #deadline = performance.now() + MAX_TIME;

  /** Whether the time is up. */
  get isOver(): boolean {
    return performance.now() > this.#deadline;
  }
}

/** A process to look into. */
export class Process {
  readonly pid: number;
  /** The descriptor of its directory in `/proc`, or of that of a thread. */
  readonly directory: number;
  #command: string | undefined;

  /** The directory stays the caller's. */
  constructor(pid: number, directory: number) {
    this.pid = pid;
    this.directory = directory;
  }

  /** Its command, at most 15 bytes of it. */
  get command(): string {
    if (this.#command === undefined) {
      const text = readText("comm", this.directory);
      this.#command = typeof text === "string" ? text : "";
    }
    return this.#command;
  }

  /** Whether it has ended, and its parent knows. */
  get hasGone(): boolean {
    const text = readText("comm", this.directory);
    return text === -ENOENT || text === -ESRCH;
  }
}

/**
 * The processes that can be seen, this one first, and negative error numbers of those
 * that cannot. Each is valid until the next.
 *
 * @throws {LoopError} when there is no `/proc`
 */
export async function* allProcesses(
  pace: Pace,
): AsyncGenerator<Process | number> {
  const fd = openDirectoryAt("/proc");
  if (fd < 0) return throwUnless([], fd, "/proc");
  using proc = new FileDescriptor(fd);
  // The first process is hidden (hidepid=2): those of other users are.
  if (statAt(AT_FDCWD, cString("/proc/1")) === -ENOENT) yield -EACCES;
  const own = readLink("self", proc.fd);
  if (typeof own === "string") yield* processOf(own, proc.fd);
  for (const names of namesIn(proc.fd)) {
    if (typeof names === "number") return throwUnless([], names, "/proc");
    for (const name of names) {
      if (!/^\d+$/.test(name) || name === own) continue;
      if (pace.isTired) await pace.breathe();
      yield* processOf(name, proc.fd);
    }
  }
}

function* processOf(name: string, proc: number): Generator<Process | number> {
  const fd = openDirectoryAt(name, proc);
  if (fd < 0) return yield fd;
  using directory = new FileDescriptor(fd);
  const pid = Number(name);
  const hasFirst = !hasEnded(directory.fd);
  if (hasFirst) yield new Process(pid, directory.fd);
  yield* threadsOf(pid, directory.fd, hasFirst);
}

/** Whether a process or thread has let go of all it had, and is only to be waited for. */
function hasEnded(directory: number): boolean {
  return readLink("cwd", directory) === -ENOENT;
}

/**
 * Whether a thread of a process waits where no signal wakes it (`D`), as for a disk or a
 * file server. Threads of the kernel do so for long, and mean nothing.
 */
export function hasWaiting(directory: number): boolean {
  const fd = openDirectoryAt("task", directory);
  if (fd < 0) return false;
  using tasks = new FileDescriptor(fd);
  let count = 0;
  for (const names of namesIn(tasks.fd)) {
    if (typeof names === "number") return false;
    for (const name of names) {
      if (++count > MAX_THREADS) return true;
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

/** A thread of the kernel (`linux/sched.h`). */
const PF_KTHREAD = 0x200000;

/** So many threads of a process are looked at. */
const MAX_THREADS = 10_000;

/**
 * The threads that have descriptors or directories of their own. A process lives on in
 * another thread when its first one has ended: then one of them all.
 */
function* threadsOf(
  pid: number,
  directory: number,
  hasFirst: boolean,
): Generator<Process | number> {
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
      // Where that cannot be told, each is looked at.
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
