/** Detaches a device without losing data, and waits until it is free. */
import {
  checkBoolean,
  checkOptions,
  checkSignal,
  checkTimeout,
} from "./arguments.ts";
import type { BoundFile } from "./attaching/bound_loop.ts";
import { openAttached } from "./attaching/open_attached.ts";
import {
  isFreeNow,
  isFreeWithin,
  release,
  type Released,
} from "./attaching/release.ts";
import type { DeviceRef } from "./device_ref.ts";
import { LoopBusyError, LoopError, quote } from "./errors.ts";
import { describeHolders } from "./describe_holder.ts";
import type { Holders } from "./holder.ts";
import { type Loop, ownDescriptors } from "./kernel/loop.ts";
import { partitionsOf } from "./kernel/loop_sysfs.ts";
import { EBUSY } from "./sys/errno.ts";
import { AT_FDCWD, cString } from "./sys/libc.ts";
import { statAt } from "./sys/stat.ts";
import { readLink } from "./sys/sysfs.ts";
import { DEFAULT_TIMEOUT, type WaitOptions } from "./waiting.ts";

/**
 * Options of {@linkcode detach}. The limits apply to waiting for other processes, not
 * to writing back.
 */
export interface DetachOptions {
  /**
   * Time in milliseconds to wait for other processes to close the device.
   *
   * @default {5000}
   */
  timeout?: number | undefined;
  /**
   * Returns without waiting: the kernel detaches the device at its last close.
   *
   * @default {false}
   */
  lazy?: boolean | undefined;
  /**
   * Changes nothing and throws {@linkcode LoopBusyError} at once if the device is in
   * use. A process that starts to use it right after the check is not noticed. If the
   * use by other processes cannot be checked completely, the device counts as used.
   *
   * @default {false}
   */
  ifUnused?: boolean | undefined;
  /** Signal used to abort the wait. The promise rejects with its reason. */
  signal?: AbortSignal | undefined;
}

/** Validated {@linkcode DetachOptions}. */
export interface ResolvedDetachOptions extends WaitOptions {
  readonly lazy: boolean;
  readonly ifUnused: boolean;
}

/** Validates the options. Throws if the signal is already aborted. */
export function checkDetachOptions(
  options: DetachOptions,
): ResolvedDetachOptions {
  checkOptions(options, ["timeout", "lazy", "ifUnused", "signal"]);
  const timeout = options.timeout === undefined
    ? DEFAULT_TIMEOUT
    : checkTimeout(options.timeout);
  const lazy = checkBoolean(options.lazy, "lazy") ?? false;
  const ifUnused = checkBoolean(options.ifUnused, "ifUnused") ?? false;
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  return { timeout, lazy, ifUnused, signal };
}

/**
 * Detaches a device, whichever process attached it, and resolves when it is free.
 *
 * By then, everything that was written through the device is in the file, including
 * what other processes wrote during the call. While a mount or another process uses the
 * device, the kernel keeps it attached, and detaches it at the last close. A failed
 * write-back is reported after the device was released. Its partitions disappear with
 * the device.
 *
 * Requires `--allow-ffi`, and permission to open the node for reading.
 *
 * @param device The device. A bare name, path or number detaches whatever is attached
 * to it now. A row of {@linkcode list} is compared with the device first, from Linux
 * 5.15 on.
 * @param options Limits for waiting for other processes.
 * @throws {LoopBusyError} If other processes do not close the device in time (`EBUSY`).
 * @throws {StaleDeviceError} If the device is now bound to another file.
 * @throws {UnexpectedDevice} If the path leads to a partition, or not to a loop device.
 * @throws {LoopError} If no file is attached (`ENXIO`), or writing back failed (`EIO`,
 * `ENOSPC`; the device is detached nonetheless).
 *
 * @example Detach all devices of a file
 * ```ts
 * import { attach, detach, find } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * await Deno.truncate(path, 1 << 20);
 * await (await attach(path)).persist();
 * for (const device of find(path)) await detach(device);
 * assertEquals(find(path), []);
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

/**
 * Returns `true` for an `Attachment`, which must detach itself because its own
 * descriptor keeps the device busy.
 */
function isAttachment(
  device: DeviceRef,
): device is DeviceRef & { detach(options: DetachOptions): Promise<void> } {
  return typeof device === "object" && device !== null &&
    "detach" in device && typeof device.detach === "function";
}

/**
 * Detaches a device only if it is still bound to `backing`, if that is given; for
 * kernels without disk sequence numbers.
 */
export async function detachBinding(
  device: DeviceRef,
  backing: BoundFile | undefined,
  options: DetachOptions,
): Promise<void> {
  const waiting = checkDetachOptions(options);
  using loop = openAttached(device, "detach", backing);
  if (waiting.ifUnused) await refuseUsed(loop, waiting.signal);
  const mayLeaveNodes = lacksNodes(loop.minor);
  const released = await release(loop);
  if (!waiting.lazy && !isFreeNow(released)) await untilFree(released, waiting);
  if (released.failure !== undefined) throw released.failure;
  if (mayLeaveNodes) await removeLeftNodes(released.minor);
}

/** Returns `true` if `/dev` lacks nodes of a device, so that it may have private ones. */
export function lacksNodes(minor: number): boolean {
  const isMissing = (name: string) =>
    typeof statAt(AT_FDCWD, cString(`/dev/${name}`)) === "number";
  try {
    return isMissing(`loop${minor}`) ||
      partitionsOf(minor).some(({ name }) => isMissing(name));
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    return true; // unknown, which must not prevent detaching
  }
}

/** Removes the private nodes of a free device that other processes created. */
export async function removeLeftNodes(minor: number): Promise<void> {
  const left = await import("./kernel/left_nodes.ts");
  left.removeLeftNodes(minor);
}

/** Waits until other processes have closed the device. */
export async function untilFree(
  device: Released,
  waiting: WaitOptions,
): Promise<void> {
  if (await isFreeWithin(device, waiting)) return;
  throw await busyError(device, waiting.signal);
}

/**
 * Throws {@linkcode LoopBusyError} if anything but this Loop uses the device, or may
 * use it.
 */
export async function refuseUsed(
  loop: Loop,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { minor, path } = loop;
  const { holders, complete } = await holdersOrNone(minor, signal);
  signal?.throwIfAborted();
  // In a PID namespace, /proc may belong to another namespace.
  const self = Number(readLink("/proc/self"));
  const own = ownDescriptors(loop);
  const others = holders.filter((holder) =>
    holder.kind !== "process" || holder.pid !== self ||
    !own.includes(holder.fd)
  );
  if (others.length === 0 && complete) return;
  const who = describeHolders({ holders: others, complete });
  throw new LoopBusyError(`Cannot detach ${quote(path)}`, {
    errno: EBUSY,
    operation: "detach",
    path,
    hint: `${who.join("; ")}; nothing was changed`,
    holders: others,
  });
}

async function busyError(
  { minor, path, failure }: Released,
  signal: AbortSignal | undefined,
): Promise<LoopBusyError> {
  const found = await holdersOrNone(minor, signal);
  // An abort must not hide that data was lost.
  if (failure === undefined) signal?.throwIfAborted();
  const { holders } = found;
  const who = describeHolders(found);
  if (holders.length === 0) who.unshift("another process has it open");
  if (failure !== undefined) who.push(failure.message);
  return new LoopBusyError(`Cannot detach ${quote(path)}`, {
    errno: EBUSY,
    operation: "detach",
    path,
    hint: `${
      who.join("; ")
    }; the kernel detaches it when the last one closes it`,
    holders,
    cause: failure,
  });
}

/**
 * Finds the holders of a device, or those found by an abort. An error must not hide that
 * the device is busy.
 */
async function holdersOrNone(
  minor: number,
  signal: AbortSignal | undefined,
): Promise<Holders> {
  try {
    const { findHolders } = await import("./kernel/holder_search.ts");
    return await findHolders(minor, { signal });
  } catch {
    return { holders: [], complete: false };
  }
}
