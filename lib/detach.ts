/** Detaching: nothing that was written is lost, and the device is free when it is done. */
import {
  checkBoolean,
  checkOptions,
  checkSignal,
  checkTimeout,
} from "./arguments.ts";
import { type DeviceRef, minorOf, recycled, sequenceIn } from "./device_ref.ts";
import { check, LoopBusyError, LoopError, quote } from "./errors.ts";
import { describeHolders } from "./describe_holder.ts";
import { findHolders, type Holders } from "./holders.ts";
import { openDevice } from "./kernel/nodes.ts";
import { Loop, reopen } from "./kernel/loop.ts";
import { diskSequenceOf, hasSysfs, isBound } from "./kernel/loop_sysfs.ts";
import { EBUSY, EINVAL, ENOTTY, ENXIO } from "./sys/errno.ts";
import {
  dirtyPages,
  ioctlValue,
  O_RDONLY,
  writeBack,
  writeBackElsewhere,
} from "./sys/libc.ts";
import { DEFAULT_TIMEOUT, type Limits, waitUntil } from "./waiting.ts";
import {
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_PARTSCAN,
  LOOP_CLR_FD,
  type LoopInfo64,
} from "./sys/loop_uapi.ts";

/** How {@linkcode detach} waits. The limits are for the waiting for others, not for writing back. */
export interface DetachOptions {
  /**
   * How many milliseconds to wait until others let go.
   *
   * @default {5000}
   */
  timeout?: number | undefined;
  /**
   * Do not wait: the kernel detaches when the last one lets go.
   *
   * @default {false}
   */
  lazy?: boolean | undefined;
  /** Ends the waiting. */
  signal?: AbortSignal | undefined;
}

/** {@linkcode DetachOptions}, checked. */
export interface Waiting extends Limits {
  readonly lazy: boolean;
}

/** Checks the options. An abort that has happened already is thrown. */
export function checkDetachOptions(options: DetachOptions): Waiting {
  checkOptions(options, ["timeout", "lazy", "signal"]);
  const timeout = options.timeout === undefined
    ? DEFAULT_TIMEOUT
    : checkTimeout(options.timeout);
  const lazy = checkBoolean(options.lazy, "lazy") ?? false;
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  return { timeout, lazy, signal };
}

/**
 * Detaches a device, whoever attached it, and resolves when it is free.
 *
 * What was written through the device is in the file then, also what others wrote
 * meanwhile. While others have it open (a mount, another process) the kernel keeps
 * it, and detaches when they let go. A failed write-back is reported after the device
 * was let go. Partitions disappear with the device. Requires `--allow-ffi`, and
 * permission to open the node for reading.
 *
 * @param device The device. With a bare name, path or number your word is taken for
 * what is attached to it; with what {@linkcode list} gave it is checked.
 * @throws {LoopBusyError} `EBUSY` when others do not let go in time
 * @throws {StaleDeviceError} when the device is bound to something else by now
 * @throws {UnexpectedDevice} for a partition, and what is no loop device
 * @throws {LoopError} `ENXIO` when no file is attached; `EIO`, `ENOSPC` when writing
 * back failed, with the device detached
 *
 * @example Detaching all devices of a file
 * ```ts
 * import { attach, detach, find } from "@loopdev/loopdev";
 *
 * const path = await Deno.makeTempFile();
 * await Deno.truncate(path, 1 << 20);
 * (await attach(path)).persist();
 * for (const device of find(path)) await detach(device);
 * await Deno.remove(path);
 * ```
 */
export async function detach(
  device: DeviceRef,
  options: DetachOptions = {},
): Promise<void> {
  if (isAttachment(device)) return await device.detach(options);
  await detachBinding(device, undefined, options);
}

/** An `Attachment` is a reference too, but its own descriptor keeps the device busy. */
function isAttachment(
  device: DeviceRef,
): device is DeviceRef & { detach(options: DetachOptions): Promise<void> } {
  return typeof device === "object" && device !== null &&
    "detach" in device && typeof device.detach === "function";
}

/** What a device was bound to: tells bindings apart before Linux 5.15, which has no disk sequence numbers. */
export interface BackingFile {
  readonly device: bigint;
  readonly inode: bigint;
}

/** The same, with something more to recognise the binding by. */
export async function detachBinding(
  device: DeviceRef,
  backing: BackingFile | undefined,
  options: DetachOptions,
): Promise<void> {
  const waiting = checkDetachOptions(options);
  using loop = openBound(device, "detach", backing);
  const released = await release(loop);
  if (!waiting.lazy) await untilFree(released, waiting);
  if (released.failure !== undefined) throw released.failure;
}

/** Opens a device to which a file is attached, and the right one. */
export function openBound(
  device: DeviceRef,
  action: string,
  backing?: BackingFile,
): Loop {
  const expected = sequenceIn(device);
  // For reading: that a device was open for writing makes udev look at it again.
  const loop = openDevice(
    typeof device === "string" ? device : minorOf(device),
    { readOnly: true },
  );
  try {
    const info = boundInfo(loop, action);
    const actual = sequenceOf(loop);
    if (expected !== undefined && actual !== undefined) {
      if (actual !== expected) throw recycled(action, loop.path);
    } else if (backing !== undefined) {
      const isSame = info.device === backing.device &&
        info.inode === backing.inode;
      if (!isSame) throw recycled(action, loop.path);
    }
    return loop;
  } catch (error) {
    loop.close();
    throw error;
  }
}

function boundInfo(loop: Loop, action: string): LoopInfo64 {
  try {
    return loop.getInfo();
  } catch (error) {
    if (!isErrno(error, ENXIO)) throw error;
    throw new LoopError(`Cannot ${action} ${quote(loop.path)}`, {
      errno: ENXIO,
      operation: "LOOP_GET_STATUS64",
      path: loop.path,
      hint: "no file is attached to it",
    });
  }
}

/** The disk sequence number of an open device; `undefined` before Linux 5.15. */
export function sequenceOf(loop: Loop): number | undefined {
  try {
    return loop.getDiskSequence();
  } catch (error) {
    const unknown = error instanceof LoopError &&
      (error.errno === EINVAL || error.errno === ENOTTY);
    if (unknown) return undefined;
    throw error;
  }
}

/** A device that was let go. */
export interface Released extends Binding {
  /** Why not everything could be written back. */
  readonly failure: LoopError | undefined;
  /** Whether the kernel drops partitions with it. */
  readonly partscan: boolean;
}

/**
 * Writes back, has the kernel detach at the last close, and closes: the device is
 * free afterwards unless others have it open.
 */
export async function release(loop: Loop): Promise<Released> {
  await writeBackMuch(loop);
  return releaseNow(loop);
}

/** The same, without regard for the event loop. */
export function releaseNow(loop: Loop): Released {
  const { minor, path } = loop;
  try {
    const sequence = orError(() => sequenceOf(loop));
    const written = orError(() => writeBackRest(loop));
    // Without them clearing finds out.
    const flags = orError(() => loop.getInfo().flags).value ?? 0;
    if ((flags & LO_FLAGS_AUTOCLEAR) === 0) clear(loop);
    return {
      minor,
      path,
      diskSequence: sequence.value,
      failure: sequence.error ?? written.error,
      partscan: (flags & LO_FLAGS_PARTSCAN) !== 0,
    };
  } finally {
    loop.close();
  }
}

/**
 * Undoes an attachment whose error must not be hidden by anything that happens here.
 * Others, udev above all, may have it open for a moment: nothing is to stay attached.
 */
export async function undo(loop: Loop): Promise<void> {
  try {
    const released = releaseNow(loop);
    await untilFree(released, { timeout: DEFAULT_TIMEOUT, signal: undefined });
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
  }
}

/** What must not keep a device from being let go is reported afterwards. */
function orError<T>(call: () => T): { value?: T; error?: LoopError } {
  try {
    return { value: call() };
  } catch (error) {
    if (error instanceof LoopError) return { error };
    throw error;
  }
}

/** 8 MiB: what is written to the page cache of the backing file in a few milliseconds. */
const FEW_PAGES = 2048;

/**
 * Writes back on another thread when there is much to write. Its result is not known;
 * writing back the rest tells of all errors, as each descriptor sees them once.
 */
async function writeBackMuch(loop: Loop): Promise<void> {
  const pages = dirtyPages(loop.fd);
  if (pages >= 0 && pages <= FEW_PAGES) return;
  let second;
  try {
    second = reopen(loop, O_RDONLY, "write back");
  } catch {
    return; // no descriptor to spare: then all of it is the rest
  }
  try {
    await writeBackElsewhere(second.fd);
  } finally {
    second.close();
  }
}

function writeBackRest(loop: Loop): void {
  check(writeBack(loop.fd), () => ({
    action: `Cannot write back ${quote(loop.path)}`,
    operation: "sync_file_range",
    path: loop.path,
    hint: "what was written last is not in the file",
  }));
}

/**
 * Has the kernel detach at the last close. With two descriptors open, so that it does
 * not do so at once and throw away what others have just written.
 */
function clear(loop: Loop): void {
  try {
    using second = reopen(loop, O_RDONLY, "detach");
    const result = ioctlValue(second.fd, LOOP_CLR_FD, 0n);
    if (result >= 0 || (result === -ENXIO && !isBound(loop.minor))) return;
    throw new LoopError(`Cannot detach ${quote(loop.path)}`, {
      errno: -result,
      operation: "LOOP_CLR_FD",
      path: loop.path,
    });
  } catch (error) {
    // Without a second descriptor the flag does the same, but slower.
    try {
      loop.setStatus({ autoclear: true });
    } catch (second) {
      if (isErrno(second, ENXIO)) return; // somebody else has cleared it
      throw error;
    }
  }
}

function isErrno(error: unknown, errno: number): boolean {
  return error instanceof LoopError && error.errno === errno;
}

/** A device, and which binding of it. */
interface Binding {
  readonly minor: number;
  readonly path: string;
  readonly diskSequence: number | undefined;
}

/** Whether a device that was let go is free: nothing is attached, or something else. */
export function isFree({ minor, diskSequence }: Binding): boolean {
  if (isBound(minor)) {
    return diskSequence !== undefined &&
      diskSequenceOf(minor) !== diskSequence;
  }
  return hasSysfs() || isUnbound(minor, diskSequence);
}

/** The same where there is no sysfs: asked of the device. */
function isUnbound(minor: number, diskSequence: number | undefined): boolean {
  try {
    using loop = new Loop(minor, { readOnly: true });
    try {
      loop.getInfo();
    } catch (error) {
      if (isErrno(error, ENXIO)) return true;
      throw error;
    }
    return diskSequence !== undefined && sequenceOf(loop) !== diskSequence;
  } catch (error) {
    if (isErrno(error, ENXIO)) return false; // the last one is about to close it
    throw error;
  }
}

/** Waits until others have let go. Mostly there are none, and one look is enough. */
export async function untilFree(
  device: Released,
  waiting: Limits,
): Promise<void> {
  const looks = await waitUntil(() => isFree(device), waiting);
  if (looks === undefined) throw await busyError(device);
  // More than one look: others had it open.
  if (looks > 1 || device.partscan) settle(device.minor);
}

/**
 * When somebody else was the last to close, the kernel may still be at it, dropping
 * the partitions above all. Opening the device waits for that.
 */
function settle(minor: number): void {
  try {
    new Loop(minor, { readOnly: true }).close();
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
  }
}

async function busyError(
  { minor, path, failure }: Released,
): Promise<LoopBusyError> {
  const found = await holdersOrNone(minor);
  const { holders } = found;
  const who = describeHolders(found);
  if (holders.length === 0) who.unshift("somebody else has it open");
  if (failure !== undefined) who.push(failure.message);
  return new LoopBusyError(`Cannot detach ${quote(path)}`, {
    errno: EBUSY,
    operation: "detach",
    path,
    hint: `${who.join("; ")}; the kernel detaches it when they let go`,
    holders,
    cause: failure,
  });
}

/** That nobody can be found must not hide that the device is busy. */
async function holdersOrNone(minor: number): Promise<Holders> {
  try {
    return await findHolders(minor);
  } catch {
    return { holders: [], complete: false };
  }
}
