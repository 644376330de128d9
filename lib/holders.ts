/** Who keeps a device busy. */
import { checkNotRecycled, type DeviceRef, minorOf } from "./device_ref.ts";
import { devicesOver } from "./devices.ts";
import { LoopError, quote } from "./errors.ts";
import type { Holder } from "./holder.ts";
import {
  BLOCK,
  deviceNumberOf,
  GONE,
  partitionNumberOf,
  partitionsOf,
  throwUnless,
} from "./kernel/loop_sysfs.ts";
import { parseMounts, unescapeOctal } from "./kernel/mounts.ts";
import { EACCES, EINVAL, ENODEV, EPERM, ESRCH } from "./sys/errno.ts";
import { AT_FDCWD, cString, S_IFBLK, S_IFMT, statAt } from "./sys/libc.ts";
import { listDirectory, readLink, readText, readWhole } from "./sys/sysfs.ts";

/**
 * Who keeps a device or its partitions busy: mounts, in every mount namespace that can
 * be seen, swap, other block devices on top, and processes that have it open.
 *
 * The device is not opened. Without root, processes and mount namespaces of other users
 * cannot be seen. Requires `--allow-ffi`.
 *
 * @throws {StaleDeviceError} when the device is bound to something else by now
 * @throws {UnexpectedDevice} for a path that leads to no whole loop device
 * @throws {LoopError} when `/proc` or `/sys` cannot be read
 *
 * @example Why a device is busy
 * ```ts
 * import { attach, holders, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using memory = openMemory(1 << 20);
 * await using device = await attach(memory);
 * const [holder] = holders(device);
 * assertEquals(holder?.kind, "process");
 * ```
 */
export function holders(device: DeviceRef): Holder[] {
  checkNotRecycled("examine", device);
  return findHolders(minorOf(device)).holders;
}

/** What was found, and whether everything could be looked at. */
export interface Findings {
  readonly holders: Holder[];
  /** Whether there are processes or mount namespaces that we may not look into. */
  readonly isPartial: boolean;
}

/** A disk and its partitions: what can be held. */
class Targets {
  readonly minor: number;
  /** The paths by device number. */
  readonly #paths = new Map<number, string>();

  constructor(minor: number) {
    this.minor = minor;
    const path = `/dev/loop${minor}`;
    const number = deviceNumberOf(minor);
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
        partitionNumberOf(minor, partition),
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

  /** The same for a node; `undefined` for everything else. A negative error number when it cannot be examined. */
  byNode(path: string): string | number | undefined {
    const stat = statAt(AT_FDCWD, cString(path));
    if (typeof stat === "number") return stat;
    return (stat.mode & S_IFMT) === S_IFBLK
      ? this.#paths.get(stat.rdevice)
      : undefined;
  }

  get paths(): string[] {
    return [...this.#paths.values()];
  }
}

/** Finds the holders of a device. */
export function findHolders(minor: number): Findings {
  const targets = new Targets(minor);
  const found: Holder[] = [...blocks(targets), ...swaps(targets)];
  const namespaces = new Set<string | number>();
  let isPartial = false;
  for (const pid of processes()) {
    const seen = [
      mountsOf(pid, targets, namespaces, found),
      descriptorsOf(pid, targets, found),
    ];
    if (seen.includes(false)) isPartial = true;
  }
  return { holders: found, isPartial };
}

/** A process that has ended; the mounts of one that its parent has not noticed yet are `EINVAL`. */
const ENDED = [...GONE, ESRCH, EINVAL];
/** A process of somebody else. */
const FORBIDDEN = [EACCES, EPERM];

function processes(): number[] {
  const names = listDirectory("/proc");
  if (typeof names === "number") {
    throwUnless([], names, "/proc");
    return [];
  }
  return names.filter((name) => /^\d+$/.test(name)).map(Number);
}

/** Adds the mounts in the namespace of a process, if it is a new one. `false`: it may not be seen. */
function mountsOf(
  pid: number,
  targets: Targets,
  namespaces: Set<string | number>,
  found: Holder[],
): boolean {
  const namespace = readLink(`/proc/${pid}/ns/mnt`);
  if (namespaces.has(namespace)) return true;
  const path = `/proc/${pid}/mountinfo`;
  const text = readWhole(path);
  if (typeof text === "number") return maySkip(text, path);
  if (typeof namespace === "string") namespaces.add(namespace);
  for (const mount of parseMounts(text)) {
    // Btrfs mounts have a number of their own, but name their device.
    const device = targets.byNumber(mount.device) ??
      targets.paths.find((path) => path === mount.source);
    if (device === undefined) continue;
    const { target } = mount;
    const known = found.some((holder) =>
      holder.kind === "mount" && holder.device === device &&
      holder.target === target
    );
    if (!known) found.push({ kind: "mount", device, target });
  }
  return true;
}

/** Adds the descriptors of a process. `false`: it may not be seen. */
function descriptorsOf(
  pid: number,
  targets: Targets,
  found: Holder[],
): boolean {
  const directory = `/proc/${pid}/fd`;
  const names = listDirectory(directory);
  if (typeof names === "number") return maySkip(names, directory);
  for (const name of names) {
    const device = targets.byNode(`${directory}/${name}`);
    if (typeof device !== "string") continue;
    const command = readText(`/proc/${pid}/comm`);
    found.push({
      kind: "process",
      device,
      pid,
      command: typeof command === "string" ? command : "",
      fd: Number(name),
    });
  }
  return true;
}

/** `true` for a process that has ended, `false` for one of somebody else; everything else is thrown. */
function maySkip(result: number, path: string): boolean {
  throwUnless([...ENDED, ...FORBIDDEN], result, path);
  return !FORBIDDEN.includes(-result);
}

/** Device-mapper and md enter themselves in sysfs, loop devices do not. */
function blocks(targets: Targets): Holder[] {
  const found: Holder[] = [];
  const disk = `/dev/loop${targets.minor}`;
  for (const device of targets.paths) {
    const name = device.replace("/dev/", "");
    const directory = device === disk
      ? `${BLOCK}/${name}/holders`
      : `${BLOCK}/loop${targets.minor}/${name}/holders`;
    const names = listDirectory(directory);
    if (typeof names === "number") throwUnless(GONE, names, directory);
    else for (const name of names) found.push({ kind: "block", device, name });
    const stat = statAt(AT_FDCWD, cString(device));
    if (typeof stat === "number") continue;
    for (const { device: upper } of devicesOver(stat)) {
      found.push({ kind: "block", device, name: upper.name });
    }
  }
  return found;
}

function swaps(targets: Targets): Holder[] {
  const path = "/proc/swaps";
  const text = readWhole(path);
  if (typeof text === "number") {
    throwUnless(GONE, text, path); // a kernel without swap
    return [];
  }
  const found: Holder[] = [];
  for (const line of text.split("\n").slice(1)) {
    const device = targets.byNode(unescapeOctal(line.split(/\s/)[0]!));
    if (typeof device === "string") found.push({ kind: "swap", device });
  }
  return found;
}
