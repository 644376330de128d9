/** Releasing a device: what was written is in the file, and the descriptor is closed, whatever fails. */
import { LoopError, quote, unwrap } from "../errors.ts";
import { currentInfo, exactSize, Loop, reopen } from "../kernel/loop.ts";
import {
  bindingOf,
  diskSequenceOf,
  hasSysfs,
  isBound,
} from "../kernel/loop_sysfs.ts";
import { isVacant } from "../kernel/vacancy.ts";
import { EINVAL, ENOTTY, ENXIO } from "../sys/errno.ts";
import {
  closeAsync,
  duplicate,
  ioctlValue,
  O_RDONLY,
  writeBack,
  writeBackAsync,
  writeBackError,
} from "../sys/libc.ts";
import {
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_PARTSCAN,
  LO_FLAGS_READ_ONLY,
  LOOP_CLR_FD,
} from "../sys/loop_uapi.ts";
import { pageCacheOf } from "../sys/page_cache.ts";
import { DEFAULT_TIMEOUT, pollUntil, type WaitOptions } from "../waiting.ts";

// How much is done at once, in a few milliseconds. More of it goes to another thread.

/** Bytes that are written to the page cache of a backing file. */
export const MAX_INLINE_BYTES: number = 8 << 20;

/** Bytes, clean ones too, that the last close of a device drops from its page cache. */
const MAX_INLINE_CACHED = 64 << 20;

/** A device, and which binding of it. */
export interface Binding {
  readonly minor: number;
  readonly path: string;
  /** What {@linkcode bindingOf} said; `undefined` where there is no sysfs, or the sequence tells the binding. */
  readonly binding: bigint | undefined;
  /** Tells the binding where {@linkcode bindingOf} was not asked. */
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
 *
 * @param diskSequence That of the binding, where it is known.
 */
export async function release(
  loop: Loop,
  diskSequence?: number,
): Promise<Released> {
  if (!hasLargeCache(loop)) return releaseBy(loop, writeBack, diskSequence);
  const flush = await writeBackInBackground(loop);
  return await closeInBackground(
    loop,
    () => releaseBy(loop, flush, diskSequence),
  );
}

/**
 * Has the descriptor, which the callback closes, be really closed on another thread: the
 * last close of a device writes back what somebody has made dirty meanwhile, and drops
 * all pages.
 */
export async function closeInBackground<T>(
  loop: Loop,
  use: () => T,
): Promise<T> {
  const last = duplicate(loop.fd);
  try {
    return use();
  } finally {
    if (last >= 0) await closeAsync(last);
  }
}

function releaseBy(
  loop: Loop,
  flush: (fd: number) => number,
  knownSequence = 0,
): Released {
  const { minor, path } = loop;
  try {
    const written = captureError(() => reportWriteBack(loop, flush));
    // Without them clearing finds out, and the file may have been exchanged.
    const flags = captureError(() => currentInfo(loop).flags).value ??
      LO_FLAGS_READ_ONLY;
    // Others can exchange the file of a read-only device alone (LOOP_CHANGE_FD), with
    // which the sequence rises: of any other it tells the binding.
    const isFixed = knownSequence !== 0 && (flags & LO_FLAGS_READ_ONLY) === 0;
    const sequence = isFixed
      ? { value: knownSequence }
      : captureError(() => sequenceOf(loop));
    const binding = isFixed ? {} : captureError(() => bindingOf(minor));
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
export async function rollBack(loop: Loop): Promise<void> {
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
function captureError<T>(call: () => T): { value?: T; error?: LoopError } {
  try {
    return { value: call() };
  } catch (error) {
    if (error instanceof LoopError) return { error };
    throw error;
  }
}

/** Whether writing back and dropping what is cached may take long. */
export function hasLargeCache(loop: Loop): boolean {
  const cache = pageCacheOf(loop.fd);
  if (typeof cache !== "number") {
    return cache.dirty > MAX_INLINE_BYTES || cache.cached > MAX_INLINE_CACHED;
  }
  if (loop.fd === -1) return false;
  // Before Linux 6.5: no more than there is.
  const size = captureError(() => exactSize(loop)).value;
  return size === undefined || size > MAX_INLINE_BYTES;
}

/** Somebody who keeps on writing makes new dirty pages during each pass. */
const MAX_PASSES = 3;
/** A pass that took no longer found little to write, in milliseconds. */
const SHORT_PASS = 20;

/**
 * Writes back on another thread until little is dirty. Its errors are not known there:
 * each open file is told of them once, so the descriptor of the device still is.
 *
 * @returns What flushes the rest, or, while somebody writes faster than that, what tells
 * of errors without waiting for him.
 */
export async function writeBackInBackground(
  loop: Loop,
): Promise<(fd: number) => number> {
  let second;
  try {
    second = reopen(loop, O_RDONLY, "write back");
  } catch (error) {
    if (loop.fd === -1) throw error;
    return writeBack; // no descriptor to spare: all of it is written back at once
  }
  try {
    for (let pass = 1; pass <= MAX_PASSES; pass++) {
      const start = performance.now();
      await writeBackAsync(second.fd);
      const cache = pageCacheOf(second.fd);
      const isLittle = typeof cache === "number"
        ? performance.now() - start < SHORT_PASS // before Linux 6.5
        : cache.dirty <= MAX_INLINE_BYTES;
      if (isLittle) return writeBack;
    }
    return writeBackError;
  } finally {
    second.close();
  }
}

/** Throws why something could not be written back, now or before. */
export function reportWriteBack(
  loop: Loop,
  flush: (fd: number) => number,
): void {
  unwrap(flush(loop.fd), () => ({
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

/** What changes when the file of an open device is exchanged: its disk sequence number, or before Linux 5.15 what names the file. */
export function fileMark(loop: Loop): number | string {
  const sequence = sequenceOf(loop);
  if (sequence !== undefined) return sequence;
  const { device, inode } = loop.getInfo();
  return `${device}:${inode}`;
}

/**
 * Whether a device that was released is free: nothing is attached, or another binding.
 * That the disk sequence number of a read-only device has changed proves nothing: who has
 * it open may have exchanged the file.
 */
export function isFree({ minor, binding, diskSequence }: Binding): boolean {
  if (isVacant(minor)) return true;
  const current = bindingOf(minor);
  if (current !== undefined) {
    return binding === undefined
      ? diskSequence !== undefined && diskSequenceOf(minor) !== diskSequence
      : current !== binding;
  }
  return hasSysfs() || isUnbound(minor, diskSequence);
}

/** Whether a device is free at the first look, with nothing to wait for. Mostly it is. */
export function isFreeNow(device: Released): boolean {
  return !device.partscan && isFree(device);
}

/** Waits until others have closed the device. */
export async function isFreeWithin(
  device: Released,
  limits: WaitOptions,
): Promise<boolean> {
  const looks = await pollUntil(() => isFree(device), limits);
  // More than one look: others had it open.
  if (looks !== undefined && (looks > 1 || device.partscan)) {
    waitForLastClose(device.minor);
  }
  return looks !== undefined;
}

/**
 * When somebody else was the last to close, the kernel may still be at it, dropping
 * the partitions above all. Opening the device waits for that.
 */
function waitForLastClose(minor: number): void {
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
