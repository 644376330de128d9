/** The search for those who keep a device busy: bounded, whatever others do. */
import {
  AT_STATX_DONT_SYNC,
  isBlockDevice,
  makedev,
  statAt,
} from "./sys/stat.ts";
import { devicesOnTop } from "./kernel/attached_devices.ts";
import { LoopError, quote } from "./errors.ts";
import type { Holder, Holders } from "./holder.ts";
import { Btrfs } from "./kernel/btrfs.ts";
import { FileDescriptor } from "./kernel/file_descriptor.ts";
import { Lookup } from "./kernel/lookup.ts";
import {
  BLOCK,
  GONE,
  partitionsOf,
  rdevOf,
  rdevOfPartition,
  throwUnless,
} from "./kernel/loop_sysfs.ts";
import { MountLine, unescapeOctal } from "./kernel/mounts.ts";
import { isHung, mappedFile, readMappings, STUCK } from "./kernel/mappings.ts";
import {
  allProcesses,
  hasWaiting,
  Pace,
  type Process,
} from "./kernel/processes.ts";
import { EACCES, EAGAIN, EINVAL, ENODEV, EPERM, ESRCH } from "./sys/errno.ts";
import {
  close,
  cString,
  O_PATH,
  O_RDONLY,
  openAt,
  transientCString,
} from "./sys/libc.ts";
import {
  listDirectory,
  namesIn,
  openDirectoryAt,
  openLines,
  readLink,
  readLinkBytes,
  readText,
  readWhole,
} from "./sys/sysfs.ts";

// What bounds a search, beside its time: others decide how much there is.
/** Of one kind: many of one must not hide the others. */
const MAX_HOLDERS = 1000;
/** Of one process. */
const MAX_DESCRIPTORS = 50_000;
/** Of one process: no more mappings are allowed by default. */
const MAX_MAPPINGS = 65_536;
/** Bytes of all tables of mounts. */
const MAX_MOUNT_BYTES = 64 << 20;

/** Options of a search. */
interface SearchOptions {
  /** Include processes that use files of a mounted file system. */
  readonly withUsers?: boolean;
}

/** Finds the holders of a device. */
export async function findHolders(
  minor: number,
  options: SearchOptions = {},
): Promise<Holders> {
  return await new Search(new Targets(minor), options).run();
}

/** A disk and its partitions: what can be held. */
class Targets {
  readonly minor: number;
  /** The paths by device number. */
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

  /** The path of the disk or partition that has this device number. */
  byNumber(number: number): string | undefined {
    return this.#paths.get(number);
  }

  /** Paths and device numbers. */
  entries(): [number: number, path: string][] {
    return [...this.#paths];
  }
}

/** A process that has ended; the mounts of one that its parent has not noticed yet are `EINVAL`. */
const ENDED = [...GONE, ESRCH, EINVAL];
/** A process of somebody else. */
const FORBIDDEN = [EACCES, EPERM];

/** Of a process namespace. */
const FIRST_PROCESS = 1;

/** So many processes are read at once. */
const MAX_READERS = 16;

/** A process as it is named. */
type User = Pick<Process, "pid" | "command">;

/** A process whose directory is not open any more. */
function userOf(pid: number): User {
  return {
    pid,
    get command() {
      const text = readText(`/proc/${pid}/comm`);
      return typeof text === "string" ? text : "";
    },
  };
}

/** One search, and what it has found. */
class Search {
  readonly #targets: Targets;
  readonly #withUsers: boolean;
  readonly #found: Holder[] = [];
  readonly #counts = new Map<Holder["kind"], number>();
  readonly #pace = new Pace();
  readonly #btrfs: Btrfs;
  readonly #ownNamespace: string | number = readLink("/proc/self/ns/mnt");
  /** The process that is being looked into. */
  #current: Process | undefined;
  #isComplete = true;

  /** Mount namespaces that were looked at, as seen from a root directory. */
  readonly #views = new Set<string>();
  #mountBytes = 0;
  /** Mounts that are known: each namespace has copies of most. */
  readonly #mounts = new Set<string>();
  /** Files that are mapped, by file system and inode: the path of the disk or partition whose node it is. */
  readonly #mapped = new Map<string, Promise<string | undefined>>();
  /** Processes in a file system on the device, which count only when it is mounted nowhere. */
  readonly #files = new Map<string, Holder>();

  constructor(targets: Targets, { withUsers = false }: SearchOptions) {
    this.#targets = targets;
    this.#withUsers = withUsers;
    this.#btrfs = new Btrfs(targets.entries());
  }

  async run(): Promise<Holders> {
    this.#blocks();
    await this.#upperDevices();
    this.#swaps();
    // Descriptors first: they are what keeps a device busy mostly.
    for await (const process of this.#processes()) {
      await this.#mountsOf(process);
      await this.#descriptorsOf(process);
    }
    await this.#mappings();
    this.#unmounted();
    // Messages name the first of them: not those that others made in a namespace of theirs.
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
      if (this.#pace.isOver) break;
      if (typeof process === "number") {
        if (process === -EAGAIN) this.#isComplete = false; // too many threads
        else this.#maySkip(process, "/proc");
        continue;
      }
      this.#current = process;
      yield process;
      this.#current = undefined;
    }
    if (this.#pace.isOver) this.#isComplete = false;
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

  /** Notes that something may not be seen. What has ended is nobody's; everything else is thrown. */
  #maySkip(result: number, path: string): void {
    throwUnless([...ENDED, ...FORBIDDEN], result, path);
    this.#note(result);
  }

  /** Notes that something cannot be seen, whatever the reason, unless it has gone. */
  #note(result: number): void {
    // Of a process that has ended meanwhile the kernel says EACCES too. The first one of a
    // container may belong to what runs it, and be out of reach even for root: then
    // nothing could ever be called complete there.
    const isUnimportant = ENDED.includes(-result) ||
      this.#current?.pid === FIRST_PROCESS || this.#current?.hasGone;
    if (!isUnimportant) this.#isComplete = false;
  }

  /** Device-mapper and md enter themselves in sysfs, loop devices do not. */
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

  /** Other loop devices do not enter themselves anywhere. */
  async #upperDevices(): Promise<void> {
    const rdevs = new Set(this.#targets.entries().map(([rdev]) => rdev));
    for (const upper of devicesOnTop(rdevs)) {
      if (this.#pace.isOver) break;
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
    const lookup = new Lookup();
    for (const line of text.split("\n").slice(1)) {
      const [name = "", type] = line.split(/\s+/);
      if (type !== "partition") continue;
      const stat = lookup.examine(cString(unescapeOctal(name)));
      const device = stat && this.#targets.byNumber(stat.rdev);
      if (device !== undefined) this.#add({ kind: "swap", device });
    }
  }

  /** Adds the mounts that a process sees, if it is the first that sees them. */
  async #mountsOf({ pid, directory }: Process): Promise<void> {
    const namespace = readLink("ns/mnt", directory);
    // Who has another root directory sees only what is below that.
    const view = typeof namespace === "number"
      ? `${pid}`
      : `${namespace} ${readLink("root", directory)}`;
    if (this.#views.has(view)) return;
    this.#views.add(view);
    const lines = openLines("mountinfo", directory);
    if (typeof lines === "number") {
      return this.#maySkip(lines, `/proc/${pid}/mountinfo`);
    }
    using reader = lines;
    const whose = namespace === this.#ownNamespace ? undefined : pid;
    while (!this.#pace.isOver) {
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

  /** Adds the descriptors of a process. */
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
      if (count > MAX_DESCRIPTORS || this.#pace.isOver) return;
      if (this.#pace.isTired) await this.#pace.breathe();
    }
  }

  #descriptor(
    process: Process,
    descriptors: number,
    name: string,
  ): void {
    // What the link says is known without a look at the file: sockets and pipes are none.
    const link = readLinkBytes(name, descriptors);
    if (typeof link === "number") return this.#note(link);
    if (link[0] !== SLASH) return;
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
   * What a link of `/proc/PID` leads to, as far as that is known without asking a file
   * server; and notes the process when that is on the device.
   */
  #examine(
    process: Process,
    directory: number,
    name: string,
  ): { mode: number; rdev: number } | undefined {
    const stat = statAt(directory, transientCString(name), AT_STATX_DONT_SYNC);
    if (typeof stat === "number") {
      this.#note(stat);
      return undefined;
    }
    const device = this.#targets.byNumber(stat.device);
    if (device !== undefined) {
      this.#file(device, process, () => readLink(name, directory));
    }
    return stat;
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

  /** Notes a process whose directories or program are on the device. */
  #directoriesOf(process: Process): void {
    for (const name of ["cwd", "root", "exe"]) {
      this.#examine(process, process.directory, name);
    }
  }

  /** Looks at what processes have mapped, several at a time: each is read on another thread. */
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
      // Mostly it does not wait: then there is nothing to be looked at again.
      const waiting = hasWaiting(directory)
        ? openDirectoryAt(".", directory)
        : -1;
      const task = this.#mappingsOf(userOf(pid), fd, waiting)
        .finally(() => running.delete(task));
      running.add(task);
      if (running.size >= MAX_READERS) await Promise.race(running);
    }
    await Promise.all(running);
  }

  /** Adds a process that has the device mapped, and notes one that has a file on it mapped. */
  async #mappingsOf(user: User, fd: number, waiting: number): Promise<void> {
    if (waiting >= 0 && await isHung(new FileDescriptor(waiting))) {
      close(fd);
      this.#isComplete = false;
      return;
    }
    const own = new Set<string>();
    let count = 0;
    for await (const lines of readMappings(fd)) {
      if (lines === -1) break; // it has ended
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
      if (count > MAX_MAPPINGS || this.#pace.isOver) break;
      if (this.#pace.isTired) await this.#pace.breathe();
    }
    for (const device of own) this.#addMapping(device, user);
  }

  /** The disk or partition whose node a line of `maps` shows; notes a process whose mapping lies on one. */
  async #mapping(user: User, line: Uint8Array): Promise<string | undefined> {
    const number = fieldAfter(line, 0, 3);
    const inode = line.indexOf(BLANK, number) + 1;
    if (number === 0 || inode === 0 || line[inode] === ZERO) return undefined; // of no file
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
    // "00400000-00452000" is "400000-452000" there.
    const range = decoder.decode(line.subarray(0, line.indexOf(BLANK)))
      .replace(/\b0+(?=.)/g, "");
    const stat = await mappedFile(pid, range);
    if (stat === STUCK) this.#isComplete = false;
    else if (stat !== undefined) {
      return isBlockDevice(stat)
        ? this.#targets.byNumber(stat.rdev)
        : undefined;
    }
    // Only root of the system may follow these links. The path has to do then.
    const name = path();
    return this.#targets.entries().find(([, path]) => path === name)?.[1];
  }

  #addMapping(device: string, { pid, command }: User): void {
    const isKnown = this.#found.some((holder) =>
      holder.kind === "process" && holder.pid === pid &&
      holder.device === device
    );
    if (isKnown) return; // it has the node open too
    this.#add({ kind: "process", device, pid, command, fd: -1 });
  }

  /** Adds who keeps a file system of which no mount is seen. */
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

/** Where the field begins that stands so many blanks after a position. */
function fieldAfter(line: Uint8Array, start: number, count: number): number {
  let at = start;
  for (let blank = 0; blank < count; blank++) {
    at = line.indexOf(BLANK, at) + 1;
    if (at === 0) return 0;
  }
  return at;
}

/** Whether a descriptor only stands for a name (`O_PATH`), and keeps no device busy. */
function isPathOnly({ directory }: Process, name: string): boolean {
  const text = readText(`fdinfo/${name}`, directory);
  if (typeof text === "number") return false;
  const flags = /^flags:\s+(\d+)/m.exec(text)?.[1] ?? "0";
  return (parseInt(flags, 8) & O_PATH) !== 0;
}
