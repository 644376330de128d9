/** Releasing a device: what was written is in the file, and the descriptor is closed, whatever fails. */
import { check, LoopError, quote } from "../errors.ts";
import { Loop, reopen } from "../kernel/loop.ts";
import { bindingOf, hasSysfs, isBound } from "../kernel/loop_sysfs.ts";
import { EINVAL, ENOTTY, ENXIO } from "../sys/errno.ts";
import {
  closeElsewhere,
  dirtyPages,
  duplicate,
  ioctlValue,
  O_RDONLY,
  writeBack,
  writeBackElsewhere,
  writeBackError,
} from "../sys/libc.ts";
import {
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_PARTSCAN,
  LOOP_CLR_FD,
} from "../sys/loop_uapi.ts";
import { DEFAULT_TIMEOUT, type Limits, waitUntil } from "../waiting.ts";

/** A device, and which binding of it. */
export interface Binding {
  readonly minor: number;
  readonly path: string;
  /** What {@linkcode bindingOf} said; `undefined` where there is no sysfs. */
  readonly binding: bigint | undefined;
  /** Tells the binding where there is no sysfs. */
  readonly diskSequence: number | undefined;
}

/** A device whose descriptor is closed. The kernel frees it when nobody has it open. */
export interface Released extends Binding {
  /** Why not everything could be written back. */
  readonly failure: LoopError | undefined;
  /** Whether the kernel removes partitions with it. */
  readonly partscan: boolean;
}

/**
 * Writes back, has the kernel detach at the last close, and closes. The device is free
 * afterwards unless others have it open. The event loop goes on meanwhile.
 */
export async function release(loop: Loop): Promise<Released> {
  const isSettled = await writeBackMuch(loop);
  if (isSettled) return releaseNow(loop);
  // Somebody goes on writing. If that one closes first, our close is the last one and
  // writes back all that is dirty: on another thread, too.
  const last = duplicate(loop.fd);
  try {
    return releaseBy(loop, writeBackError);
  } finally {
    if (last >= 0) await closeElsewhere(last);
  }
}

/** Releases a device at once: for one through which little was written. */
export function releaseNow(loop: Loop): Released {
  return releaseBy(loop, writeBack);
}

function releaseBy(loop: Loop, flush: (fd: number) => number): Released {
  const { minor, path } = loop;
  try {
    const sequence = orError(() => sequenceOf(loop));
    const binding = orError(() => bindingOf(minor));
    const written = orError(() => reportWriteBack(loop, flush));
    // Without them clearing finds out.
    const flags = orError(() => loop.getInfo().flags).value ?? 0;
    if ((flags & LO_FLAGS_AUTOCLEAR) === 0) clear(loop);
    return {
      minor,
      path,
      binding: binding.value,
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
    await isFreeWithin(await release(loop), {
      timeout: DEFAULT_TIMEOUT,
      signal: undefined,
    });
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
  }
}

/** What must not keep a device from being released is reported afterwards. */
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
/** Somebody who keeps on writing makes new dirty pages during each pass. */
const MAX_PASSES = 3;

/**
 * Writes back on another thread until little is dirty. `false`: somebody writes faster.
 * Errors are not known here: each open file is told of them once, so the descriptor of
 * the device still is.
 */
export async function writeBackMuch(loop: Loop): Promise<boolean> {
  let pages = dirtyPages(loop.fd);
  if (isFew(pages)) return true;
  let second;
  try {
    second = reopen(loop, O_RDONLY, "write back");
  } catch (error) {
    if (loop.fd === -1) throw error;
    return true; // no descriptor to spare: all of it is written back at once
  }
  try {
    for (let pass = 1; pass <= MAX_PASSES; pass++) {
      await writeBackElsewhere(second.fd);
      pages = dirtyPages(second.fd);
      if (pages < 0 || isFew(pages)) return true;
    }
    return false;
  } finally {
    second.close();
  }
}

function isFew(pages: number): boolean {
  return pages >= 0 && pages <= FEW_PAGES;
}

/** Throws why something could not be written back, now or before. */
export function reportWriteBack(
  loop: Loop,
  flush: (fd: number) => number,
): void {
  check(flush(loop.fd), () => ({
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

/** Whether an error is that of the kernel with this number. */
export function isErrno(error: unknown, errno: number): error is LoopError {
  return error instanceof LoopError && error.errno === errno;
}

/** The disk sequence number of an open device; `undefined` before Linux 5.15. */
export function sequenceOf(loop: Loop): number | undefined {
  try {
    return loop.getDiskSequence();
  } catch (error) {
    if (isErrno(error, EINVAL) || isErrno(error, ENOTTY)) return undefined;
    throw error;
  }
}

/**
 * Whether a device that was released is free: nothing is attached, or another binding.
 * That the disk sequence number has changed proves nothing: who has the device open may
 * have exchanged the file.
 */
export function isFree({ minor, binding, diskSequence }: Binding): boolean {
  const current = bindingOf(minor);
  if (current !== undefined) {
    return binding !== undefined && current !== binding;
  }
  return hasSysfs() || isUnbound(minor, diskSequence);
}

/** Waits until others have closed the device. Mostly there are none, and one look is enough. */
export async function isFreeWithin(
  device: Released,
  limits: Limits,
): Promise<boolean> {
  const looks = await waitUntil(() => isFree(device), limits);
  // More than one look: others had it open.
  if (looks !== undefined && (looks > 1 || device.partscan)) {
    settle(device.minor);
  }
  return looks !== undefined;
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

/** Asks the device itself, where there is no sysfs. */
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
