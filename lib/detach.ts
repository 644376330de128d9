/** Detaching: nothing that was written is lost, and the device is free when it is done. */
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
import { LoopBusyError, quote } from "./errors.ts";
import { describeHolders } from "./describe_holder.ts";
import type { Holders } from "./holder.ts";
import { type Loop, ownDescriptors } from "./kernel/loop.ts";
import { EBUSY } from "./sys/errno.ts";
import { AT_FDCWD, cString } from "./sys/libc.ts";
import { statAt } from "./sys/stat.ts";
import { readLink } from "./sys/sysfs.ts";
import { DEFAULT_TIMEOUT, type WaitOptions } from "./waiting.ts";

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
  /**
   * Change nothing when anybody is seen to use the device: {@linkcode LoopBusyError} at
   * once. Somebody may begin to use it right after the look. Where what others do cannot
   * be seen, it counts as used.
   *
   * @default {false}
   */
  ifUnused?: boolean | undefined;
  /** Ends the waiting. */
  signal?: AbortSignal | undefined;
}

/** {@linkcode DetachOptions}, checked. */
export interface ResolvedDetachOptions extends WaitOptions {
  readonly lazy: boolean;
  readonly ifUnused: boolean;
}

/** Checks the options. An abort that has happened already is thrown. */
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
 * Detaches a device, whoever attached it, and resolves when it is free.
 *
 * What was written through the device is in the file then, also what others wrote
 * meanwhile. While others have it open (a mount, another process) the kernel keeps
 * it, and detaches when they let go. A failed write-back is reported after the device
 * was let go. Partitions disappear with the device. Requires `--allow-ffi`, and
 * permission to open the node for reading.
 *
 * @param device The device. With a bare name, path or number your word is taken for
 * what is attached to it; with what {@linkcode list} gave it is checked, from Linux 5.15
 * on.
 * @param options How long to wait for others.
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
 * await (await attach(path)).persist();
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

/** The same, with something more to recognize the binding by. */
export async function detachBinding(
  device: DeviceRef,
  backing: BoundFile | undefined,
  options: DetachOptions,
): Promise<void> {
  const waiting = checkDetachOptions(options);
  using loop = openAttached(device, "detach", backing);
  if (waiting.ifUnused) await refuseUsed(loop);
  const released = await release(loop);
  if (!waiting.lazy && !isFreeNow(released)) await untilFree(released, waiting);
  if (released.failure !== undefined) throw released.failure;
  await removeLeftNodes(released.minor);
}

/** Removes the private nodes of a device that another process attached, where `/dev` has none. */
async function removeLeftNodes(minor: number): Promise<void> {
  const node = statAt(AT_FDCWD, cString(`/dev/loop${minor}`));
  if (typeof node !== "number") return;
  const left = await import("./kernel/left_nodes.ts");
  left.removeLeftNodes(minor);
}

/** Waits until others have closed the device. */
export async function untilFree(
  device: Released,
  waiting: WaitOptions,
): Promise<void> {
  if (!await isFreeWithin(device, waiting)) throw await busyError(device);
}

/** Throws {@linkcode LoopBusyError} when others than this Loop use the device, or may do so. */
export async function refuseUsed(loop: Loop): Promise<void> {
  const { minor, path } = loop;
  const { holders, complete } = await holdersOrNone(minor);
  // In a process namespace of its own /proc may be that of another one.
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
    const { findHolders } = await import("./holder_search.ts");
    return await findHolders(minor);
  } catch {
    return { holders: [], complete: false };
  }
}
