/** Searches for the holders of a device, within limits of time and number. */
import {
  AT_STATX_DONT_SYNC,
  closedFileSystemAt,
  isBlockDevice,
  makedev,
  statAt,
} from "../sys/stat.ts";
import { devicesOnTop } from "./attached_devices.ts";
import { LoopError, quote } from "../errors.ts";
import type { Holder, Holders } from "../holder.ts";
import { Btrfs } from "./btrfs.ts";
import { FileDescriptor } from "./file_descriptor.ts";
import { Lookup } from "./lookup.ts";
import {
  BLOCK,
  GONE,
  partitionsOf,
  rdevOf,
  rdevOfPartition,
  throwUnless,
} from "./loop_sysfs.ts";
import { MountLine, unescapeOctal } from "./mounts.ts";
import { isHung, mappedFile, readMappings, STUCK } from "./mappings.ts";
import { allProcesses, hasWaiting, Pace, type Process } from "./processes.ts";
import {
  EACCES,
  EAGAIN,
  EINVAL,
  ENAMETOOLONG,
  ENODEV,
  EPERM,
  ESRCH,
} from "../sys/errno.ts";
import {
  close,
  cString,
  O_PATH,
  O_RDONLY,
  openAt,
  transientCString,
} from "../sys/libc.ts";
import {
  listDirectory,
  namesIn,
  openDirectoryAt,
  openLines,
  readLink,
  readLinkBytes,
  readText,
  readWhole,
} from "../sys/sysfs.ts";

// Limits of a search, besides its time: other users decide how much there is.
/** Limit for each kind, so that many holders of one kind do not hide the others. */
const MAX_HOLDERS = 1000;
/** Limit for each process. */
const MAX_DESCRIPTORS = 50_000;
/** Limit for each process: the kernel allows no more mappings by default. */
const MAX_MAPPINGS = 65_536;
/** Limit in bytes for all tables of mounts together. */
const MAX_MOUNT_BYTES = 64 << 20;

/** Options of a search. */
interface SearchOptions {
  /** Include processes that use files of a mounted file system. */
  readonly withUsers?: boolean;
  /** Ends the search early, with what was found by then. */
  readonly signal?: AbortSignal | undefined;
}

/** Finds the holders of a device. */
export async function findHolders(
  minor: number,
  options: SearchOptions = {},
): Promise<Holders> {
  return await new Search(new Targets(minor), options).run();
}

/** A disk and its partitions, each of which can be in use. */
class Targets {
  readonly minor: number;
  /** Paths by device number. */
  readonly #paths = new Map<number, string>();

  constructor(minor: number) {
    this.minor = minor;
    const path = `/dev/loop${minor}`;
    const number = rdevOf(minor);
    if (number === undefined) {
      throw new LoopError(`Cannot examine ${quote(path)}`, {
        errno: ENODEV,
        operation: "open",
        path,
        hint: `the kernel has no loop${minor}`,
      });
    }
    this.#add(number, path);
    for (const partition of partitionsOf(minor)) {
      this.#add(
        rdevOfPartition(minor, partition),
        `/dev/${partition.name}`,
      );
    }
  }

  #add(number: number | undefined, path: string): void {
    if (number !== undefined) this.#paths.set(number, path);
  }

  /** Returns the path of the disk or partition with the given device number. */
  byNumber(number: number): string | undefined {
    return this.#paths.get(number);
  }

  /** Returns device numbers and paths. */
  entries(): [number: number, path: string][] {
    return [...this.#paths];
  }
}

/** Errors for a process that has exited. Reading the mounts of a zombie is `EINVAL`. */
const ENDED = [...GONE, ESRCH, EINVAL];
/** Errors for a process of another user. */
const FORBIDDEN = [EACCES, EPERM];

/** Process ID of the first process in a PID namespace. */
const FIRST_PROCESS = 1;

/** Maximum number of processes to read at once. */
const MAX_READERS = 16;

/** A process, as a holder names it. */
type User = Pick<Process, "pid" | "command">;

/** Describes a process whose directory is no longer open. */
function userOf(pid: number): User {
  return {
    pid,
    get command() {
      const text = readText(`/proc/${pid}/comm`);
      return typeof text === "string" ? text : "";
    },
  };
}

/** A search and its results. */
class Search {
  readonly #targets: Targets;
  readonly #withUsers: boolean;
  readonly #found: Holder[] = [];
  readonly #counts = new Map<Holder["kind"], number>();
  readonly #pace: Pace;
  readonly #lookup = new Lookup();
  readonly #btrfs: Btrfs;
  readonly #ownNamespace: string | number = readLink("/proc/self/ns/mnt");
  /** The process being examined. */
  #current: Process | undefined;
  #isComplete = true;

  /** Mount namespaces already examined, each as seen from a root directory. */
  readonly #views = new Set<string>();
  #mountBytes = 0;
  /** Mounts already known: each namespace has copies of most of them. */
  readonly #mounts = new Set<string>();
  /**
   * Mapped files by file system and inode, with the path of the disk or partition whose
   * node each one is.
   */
  readonly #mapped = new Map<string, Promise<string | undefined>>();
  /**
   * Processes that use a file system on the device. They count only if it is not
   * mounted.
   */
  readonly #files = new Map<string, Holder>();

  constructor(targets: Targets, { withUsers = false, signal }: SearchOptions) {
    this.#targets = targets;
    this.#pace = new Pace(signal);
    this.#withUsers = withUsers;
    this.#btrfs = new Btrfs(targets.entries(), this.#lookup);
  }

  async run(): Promise<Holders> {
    await this.#lookup.prepare(this.#pace);
    this.#blocks();
    await this.#upperDevices();
    this.#swaps();
    // Descriptors first, because they usually keep a device busy.
    for await (const process of this.#processes()) {
      await this.#mountsOf(process);
      await this.#descriptorsOf(process);
    }
    await this.#mappings();
    this.#unmounted();
    // A message names the first holders, so put mounts in foreign mount namespaces
    // last.
    const isElsewhere = (holder: Holder): boolean =>
      holder.kind === "mount" && holder.pid !== undefined;
    const holders = [
      ...this.#found.filter((holder) => !isElsewhere(holder)),
      ...this.#found.filter(isElsewhere),
    ];
    return { holders, complete: this.#isComplete };
  }

  async *#processes(): AsyncGenerator<Process> {
    for await (const process of allProcesses(this.#pace)) {
      if (this.#stopsHere()) break;
      if (typeof process === "number") {
        if (process === -EAGAIN) this.#isComplete = false; // too many threads
        else this.#maySkip(process, "/proc");
        continue;
      }
      this.#current = process;
      yield process;
      this.#current = undefined;
    }
    this.#stopsHere(); // the enumeration may have ended early, too
  }

  /** Returns `true` if the time is up. The search is then incomplete. */
  #stopsHere(): boolean {
    const isOver = this.#pace.isOver;
    if (isOver) this.#isComplete = false;
    return isOver;
  }

  #add(holder: Holder): void {
    const count = this.#counts.get(holder.kind) ?? 0;
    if (count === MAX_HOLDERS) {
      this.#isComplete = false;
      return;
    }
    this.#counts.set(holder.kind, count + 1);
    this.#found.push(holder);
  }

  /**
   * Records that something may be hidden from us. Ignores processes that have exited;
   * throws any other error.
   */
  #maySkip(result: number, path: string): void {
    throwUnless([...ENDED, ...FORBIDDEN], result, path);
    this.#note(result);
  }

  /**
   * Records that something cannot be seen, whatever the error, unless the process has
   * exited.
   */
  #note(result: number): void {
    // The kernel also returns EACCES for a process that has exited. The first process
    // of a container may belong to its runtime and be inaccessible even to root; if it
    // counted, no search in a container would ever be complete.
    const isUnimportant = ENDED.includes(-result) ||
      this.#current?.pid === FIRST_PROCESS || this.#current?.hasGone;
    if (!isUnimportant) this.#isComplete = false;
  }

  /**
   * Adds device-mapper and md devices, which register themselves in sysfs; loop devices
   * do not.
   */
  #blocks(): void {
    const disk = `loop${this.#targets.minor}`;
    for (const [, device] of this.#targets.entries()) {
      const own = device.replace("/dev/", "");
      const directory = own === disk
        ? `${BLOCK}/${own}/holders`
        : `${BLOCK}/${disk}/${own}/holders`;
      const names = listDirectory(directory);
      if (typeof names === "number") throwUnless(GONE, names, directory);
      else {
        for (const name of names) {
          const label = readText(`/sys/class/block/${name}/dm/name`);
          this.#add({
            kind: "block",
            device,
            name,
            ...(typeof label === "string" && { label }),
          });
        }
      }
    }
  }

  /** Adds other loop devices on top of the device, which register themselves nowhere. */
  async #upperDevices(): Promise<void> {
    const rdevs = new Set(this.#targets.entries().map(([rdev]) => rdev));
    for (const upper of devicesOnTop(rdevs, this.#lookup)) {
      if (this.#stopsHere()) break;
      if (this.#pace.isTired) await this.#pace.breathe();
      const device = upper && this.#targets.byNumber(upper.rdev);
      if (device === undefined) continue;
      this.#add({ kind: "block", device, name: upper!.name });
    }
  }

  #swaps(): void {
    const path = "/proc/swaps";
    const text = readWhole(path);
    if (typeof text === "number") {
      throwUnless(GONE, text, path); // a kernel without swap
      return;
    }
    for (const line of text.split("\n").slice(1)) {
      const [name = "", type] = line.split(/\s+/);
      if (type !== "partition") continue;
      const stat = this.#lookup.examine(cString(unescapeOctal(name)));
      const device = stat && this.#targets.byNumber(stat.rdev);
      if (device !== undefined) this.#add({ kind: "swap", device });
    }
  }

  /** Adds the mounts a process sees, once for each view. */
  async #mountsOf({ pid, directory }: Process): Promise<void> {
    const namespace = readLink("ns/mnt", directory);
    // A process with another root directory sees only the mounts below it.
    const root = readLink("root", directory);
    const isKnown = typeof namespace === "string" && typeof root === "string";
    const view = isKnown ? `${namespace} ${root}` : `${pid}`;
    if (this.#views.has(view)) return;
    const lines = openLines("mountinfo", directory);
    if (typeof lines === "number") {
      return this.#maySkip(lines, `/proc/${pid}/mountinfo`);
    }
    using reader = lines;
    // If the process has exited before that, another one may have the same view.
    this.#views.add(view);
    const whose = namespace === this.#ownNamespace ? undefined : pid;
    while (!this.#stopsHere()) {
      const line = reader.next();
      if (line === undefined) break;
      if (typeof line === "number") {
        this.#maySkip(line, `/proc/${pid}/mountinfo`);
        break;
      }
      this.#mount(new MountLine(line), whose);
      if (this.#mountBytes + reader.bytesRead > MAX_MOUNT_BYTES) {
        this.#isComplete = false;
        break;
      }
      if (this.#pace.isTired) await this.#pace.breathe();
    }
    if (reader.hasSkipped) this.#isComplete = false;
    this.#mountBytes += reader.bytesRead;
  }

  #mount(mount: MountLine, pid: number | undefined): void {
    const number = mount.device;
    const device = this.#targets.byNumber(number);
    const devices = device === undefined
      ? this.#btrfs.devicesOf(number, mount, pid)
      : [device];
    for (const device of devices) {
      this.#addMount(device, mount.target, pid);
    }
  }

  #addMount(device: string, target: string, pid: number | undefined): void {
    const key = `${device} ${target}`;
    if (this.#mounts.has(key) || this.#mounts.size > MAX_HOLDERS) {
      if (!this.#mounts.has(key)) this.#isComplete = false;
      return;
    }
    this.#mounts.add(key);
    this.#add({
      kind: "mount",
      device,
      target,
      ...(pid !== undefined && { pid }),
    });
  }

  /** Adds the descriptors of a process that refer to the device. */
  async #descriptorsOf(process: Process): Promise<void> {
    const { pid, directory } = process;
    const fd = openDirectoryAt("fd", directory);
    if (fd < 0) {
      if (FORBIDDEN.includes(-fd) && !process.hasGone) this.#isComplete = false;
      return this.#maySkip(fd, `/proc/${pid}/fd`);
    }
    using descriptors = new FileDescriptor(fd);
    let count = 0;
    for (const names of namesIn(descriptors.fd)) {
      if (typeof names === "number") {
        return this.#maySkip(names, `/proc/${pid}/fd`);
      }
      for (const name of names) {
        this.#descriptor(process, descriptors.fd, name);
      }
      count += names.length;
      if (count > MAX_DESCRIPTORS) this.#isComplete = false;
      if (count > MAX_DESCRIPTORS || this.#stopsHere()) return;
      if (this.#pace.isTired) await this.#pace.breathe();
    }
  }

  #descriptor(
    process: Process,
    descriptors: number,
    name: string,
  ): void {
    // The text of the link rules out sockets and pipes without examining the file.
    const link = readLinkBytes(name, descriptors);
    if (typeof link === "number") {
      // Any user can make a path too long for the kernel to report.
      if (link !== -ENAMETOOLONG) return this.#note(link);
    } else if (link[0] !== SLASH) return;
    const stat = this.#examine(process, descriptors, name);
    if (stat === undefined) return;
    const isBlock = isBlockDevice(stat);
    const device = isBlock ? this.#targets.byNumber(stat.rdev) : undefined;
    if (device === undefined || isPathOnly(process, name)) return;
    this.#add({
      kind: "process",
      device,
      pid: process.pid,
      command: process.command,
      fd: Number(name),
    });
  }

  /**
   * Examines the target of a link in `/proc/PID` without asking a file server, and
   * records the process if the target is on the device.
   *
   * Files on a FUSE mount of another user cannot be examined, not even by root. They are
   * taken for regular files, because such mounts show no devices (`nodev`).
   */
  #examine(
    process: Process,
    directory: number,
    name: string,
  ): { mode: number; rdev: number } | undefined {
    const path = transientCString(name);
    const stat = statAt(directory, path, AT_STATX_DONT_SYNC);
    const fileSystem = typeof stat === "object"
      ? stat.device
      : stat === -EACCES
      ? closedFileSystemAt(directory, path, AT_STATX_DONT_SYNC)
      : stat;
    if (fileSystem < 0) this.#note(fileSystem);
    const device = this.#targets.byNumber(fileSystem);
    if (device !== undefined) {
      this.#file(device, process, () => readLink(name, directory));
    }
    return typeof stat === "object" ? stat : undefined;
  }

  #file(device: string, user: User, path: () => string | number): void {
    const { pid, command } = user;
    const key = `${device} ${pid}`;
    if (this.#files.has(key) || this.#files.size >= MAX_HOLDERS) return;
    const name = path();
    this.#files.set(key, {
      kind: "file",
      device,
      pid,
      command,
      path: typeof name === "string" ? name : "",
    });
  }

  /** Records a process whose directories or program are on the device. */
  #directoriesOf(process: Process): void {
    for (const name of ["cwd", "root", "exe"]) {
      this.#examine(process, process.directory, name);
    }
  }

  /**
   * Examines the mappings of the processes, several at a time: each is read on another
   * thread.
   */
  async #mappings(): Promise<void> {
    const running = new Set<Promise<void>>();
    for await (const process of this.#processes()) {
      this.#directoriesOf(process);
      const { pid, directory } = process;
      const fd = openAt(directory, transientCString("maps"), O_RDONLY);
      if (fd < 0) {
        this.#maySkip(fd, `/proc/${pid}/maps`);
        continue;
      }
      // Usually the process is not blocked, and needs no second look.
      const waiting = await hasWaiting(directory, this.#pace)
        ? openDirectoryAt(".", directory)
        : -1;
      const task = this.#mappingsOf(userOf(pid), fd, waiting)
        .finally(() => running.delete(task));
      running.add(task);
      if (running.size >= MAX_READERS) await Promise.race(running);
    }
    await Promise.all(running);
  }

  /**
   * Adds a process that has the device mapped, and records one that has a file on it
   * mapped.
   */
  async #mappingsOf(user: User, fd: number, waiting: number): Promise<void> {
    if (waiting >= 0 && await isHung(new FileDescriptor(waiting))) {
      close(fd);
      this.#isComplete = false;
      return;
    }
    const own = new Set<string>();
    let count = 0;
    for await (const lines of readMappings(fd)) {
      if (lines === -1) break; // the process has exited
      if (lines === STUCK) {
        this.#isComplete = false;
        break;
      }
      for (const line of lines) {
        const device = await this.#mapping(user, line);
        if (device !== undefined) own.add(device);
      }
      count += lines.length;
      if (count > MAX_MAPPINGS) this.#isComplete = false;
      if (count > MAX_MAPPINGS || this.#stopsHere()) break;
      if (this.#pace.isTired) await this.#pace.breathe();
    }
    for (const device of own) this.#addMapping(device, user);
  }

  /**
   * Returns the disk or partition whose node a line of `maps` shows. Records the
   * process if the mapped file is on one of them.
   */
  async #mapping(user: User, line: Uint8Array): Promise<string | undefined> {
    const number = fieldAfter(line, 0, 3);
    const inode = line.indexOf(BLANK, number) + 1;
    if (number === 0 || inode === 0 || line[inode] === ZERO) return undefined; // no file
    const end = line.indexOf(BLANK, inode);
    const file = decoder.decode(line.subarray(number, end));
    const path = (): string =>
      decoder.decode(line.subarray(line.indexOf(SLASH, end)));
    const [major = "", minor = ""] = file.split(/[: ]/);
    const device = this.#targets.byNumber(
      makedev(parseInt(major, 16), parseInt(minor, 16)),
    );
    if (device !== undefined) this.#file(device, user, path);
    if (!this.#mapped.has(file)) {
      if (this.#mapped.size >= MAX_MAPPINGS) this.#mapped.clear();
      this.#mapped.set(file, this.#mappedNode(user.pid, line, path));
    }
    return await this.#mapped.get(file);
  }

  async #mappedNode(
    pid: number,
    line: Uint8Array,
    path: () => string,
  ): Promise<string | undefined> {
    // Range names in map_files have no leading zeros: "00400000-00452000" is
    // "400000-452000".
    const range = decoder.decode(line.subarray(0, line.indexOf(BLANK)))
      .replace(/\b0+(?=.)/g, "");
    const stat = await mappedFile(pid, range);
    if (stat === STUCK) this.#isComplete = false;
    else if (stat !== undefined) {
      return isBlockDevice(stat)
        ? this.#targets.byNumber(stat.rdev)
        : undefined;
    }
    // Only root of the initial user namespace may follow these links. Others have to
    // use the path.
    const name = path();
    return this.#targets.entries().find(([, path]) => path === name)?.[1];
  }

  #addMapping(device: string, { pid, command }: User): void {
    const isKnown = this.#found.some((holder) =>
      holder.kind === "process" && holder.pid === pid &&
      holder.device === device
    );
    if (isKnown) return; // the process also has the node open
    this.#add({ kind: "process", device, pid, command, fd: -1 });
  }

  /** Adds the users of a file system that is not mounted anywhere visible. */
  #unmounted(): void {
    for (const { device, target, pid } of this.#btrfs.mountsLeft()) {
      this.#addMount(device, target, pid);
    }
    const mounted = new Set(
      this.#found.filter(({ kind }) => kind === "mount")
        .map(({ device }) => device),
    );
    for (const file of this.#files.values()) {
      if (this.#withUsers || !mounted.has(file.device)) this.#add(file);
    }
    for (const { device, uuid } of this.#btrfs.unseen()) {
      if (mounted.has(device)) continue;
      this.#add({ kind: "block", device, name: "btrfs", label: uuid });
    }
  }
}

const SLASH = "/".charCodeAt(0);
const BLANK = " ".charCodeAt(0);
const ZERO = "0".charCodeAt(0);
const decoder = new TextDecoder();

/** Returns the start of the field that follows the given number of blanks. */
function fieldAfter(line: Uint8Array, start: number, count: number): number {
  let at = start;
  for (let blank = 0; blank < count; blank++) {
    at = line.indexOf(BLANK, at) + 1;
    if (at === 0) return 0;
  }
  return at;
}

/** Returns `true` if a descriptor is `O_PATH`, which keeps no device busy. */
function isPathOnly({ directory }: Process, name: string): boolean {
  const text = readText(`fdinfo/${name}`, directory);
  if (typeof text === "number") return false;
  const flags = /^flags:\s+(\d+)/m.exec(text)?.[1] ?? "0";
  return (parseInt(flags, 8) & O_PATH) !== 0;
}
