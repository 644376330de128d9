/** Releases a device: writes back, and closes the descriptor whatever fails. */
import { LoopError, quote, unwrap } from "../errors.ts";
import { takeDescriptor } from "../kernel/file_descriptor.ts";
import { currentInfo, exactSize, Loop, reopen } from "../kernel/loop.ts";
import {
  bindingOf,
  diskSequenceOf,
  hasSysfs,
  isBound,
} from "../kernel/loop_sysfs.ts";
import { isVacant } from "../kernel/vacancy.ts";
import { EBUSY, EINVAL, ENOTTY, ENXIO } from "../sys/errno.ts";
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
import { isCachedBeyond, type PageCache } from "../sys/page_cache.ts";
import {
  BRIEF_USE,
  DEFAULT_TIMEOUT,
  pollUntil,
  type WaitOptions,
} from "../waiting.ts";

// Limits for work on this thread, which takes a few milliseconds. Larger amounts go to
// another thread.

/** Bytes to write to the page cache of a backing file. */
export const MAX_INLINE_BYTES: number = 8 << 20;

/**
 * Bytes, including clean ones, to drop from the page cache at the last close of a
 * device.
 */
const MAX_INLINE_CACHED = 64 << 20;

/** Amounts to examine and write back on this thread. Counting more takes long, too. */
export const MAX_INLINE: PageCache = {
  cached: 256 << 20,
  dirty: MAX_INLINE_BYTES,
};

/** A device and the identity of its binding. */
export interface Binding {
  readonly minor: number;
  readonly path: string;
  /**
   * The result of {@linkcode bindingOf}, or `undefined` if there is no sysfs or the
   * disk sequence number identifies the binding.
   */
  readonly binding: bigint | undefined;
  /** Identifies the binding if {@linkcode bindingOf} was not called. */
  readonly diskSequence: number | undefined;
}

/** A device whose descriptor was closed. The kernel detaches it at its last close. */
export interface Released extends Binding {
  /** The error of writing back, if it failed. */
  readonly failure: LoopError | undefined;
  /** `true` if the kernel removes the partitions on detaching. */
  readonly partscan: boolean;
}

/**
 * Writes back, marks the device to be detached at its last close, and closes it. The
 * device is then free unless another process has it open. Does not block the event
 * loop.
 *
 * @param diskSequence The disk sequence number of the binding, if known.
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
 * Makes the callback's close take effect on another thread: the last close of a device
 * writes back pages dirtied by other processes and drops all pages, which can take
 * long.
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
    // If the flags cannot be read, assume that the device must be cleared and that its
    // file was exchanged: LOOP_CLR_FD reports what is wrong.
    const flags = captureError(() => currentInfo(loop).flags).value ??
      LO_FLAGS_READ_ONLY;
    // Other processes can exchange the file only of a read-only device
    // (LOOP_CHANGE_FD), which raises the disk sequence number. For any other device,
    // that number identifies the binding.
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
 * Detaches a device after an error, without hiding that error. udev may have the device
 * open for a moment, so this waits until nothing is attached.
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

/**
 * Runs `call` and returns its LoopError instead of throwing it, so that the device is
 * released first.
 */
function captureError<T>(call: () => T): { value?: T; error?: LoopError } {
  try {
    return { value: call() };
  } catch (error) {
    if (error instanceof LoopError) return { error };
    throw error;
  }
}

/** Returns `true` if writing back and dropping the cached pages may take long. */
export function hasLargeCache(loop: Loop): boolean {
  if (loop.fd === -1) return false;
  const size = captureError(() => exactSize(loop)).value;
  if (size === undefined) return true;
  if (size <= MAX_INLINE_BYTES) return false;
  const limits = { cached: MAX_INLINE_CACHED, dirty: MAX_INLINE_BYTES };
  // Before Linux 6.5, assume that the whole device is cached.
  return isCachedBeyond(limits, loop.fd, size) !== false;
}

/**
 * Maximum number of passes: a process that keeps writing dirties new pages during each
 * one.
 */
const MAX_PASSES = 3;
/** A shorter pass, in milliseconds, found little to write. */
const SHORT_PASS = 20;

/**
 * Writes back on another thread until few pages are dirty. Errors are lost there, but
 * the kernel reports them once to every open file, and so to the descriptor of the
 * device.
 *
 * @returns A function that writes back the rest or, while another process writes faster
 * than that, only reports errors.
 */
export async function writeBackInBackground(
  loop: Loop,
): Promise<(fd: number) => number> {
  const size = captureError(() => exactSize(loop)).value ?? 0n;
  let second;
  try {
    second = reopen(loop, O_RDONLY, "write back");
  } catch (error) {
    if (loop.fd === -1) throw error;
    return writeBack; // no descriptor left: write everything back on this thread
  }
  try {
    for (let pass = 1; pass <= MAX_PASSES; pass++) {
      const start = performance.now();
      await writeBackAsync(second.fd);
      const isMuch = isCachedBeyond(MAX_INLINE, second.fd, size);
      const isLittle = typeof isMuch === "number"
        ? performance.now() - start < SHORT_PASS // before Linux 6.5
        : !isMuch;
      if (isLittle) return writeBack;
    }
    return writeBackError;
  } finally {
    // On another thread: an abort may have closed the other one.
    await closeAsync(takeDescriptor(second));
  }
}

/** Throws if writing back failed, now or earlier. */
export function reportWriteBack(
  loop: Loop,
  flush: (fd: number) => number,
): void {
  unwrap(flush(loop.fd), () => ({
    action: `Cannot write back ${quote(loop.path)}`,
    operation: "sync_file_range",
    path: loop.path,
    hint: "the data written last is not in the file",
  }));
}

/**
 * Marks the device to be detached at its last close. Two descriptors are open during
 * the call, because otherwise the kernel would detach at once and discard what other
 * processes have just written.
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
    // Without a second descriptor, autoclear has the same effect, but takes longer.
    try {
      loop.setStatus({ autoclear: true });
    } catch (second) {
      if (isErrno(second, ENXIO)) return; // another process has cleared it
      throw error;
    }
  }
}

/** Returns `true` if an error came from the kernel with this number. */
export function isErrno(error: unknown, errno: number): error is LoopError {
  return error instanceof LoopError && error.errno === errno;
}

/**
 * Returns the disk sequence number of an open device, or `undefined` before Linux 5.15.
 */
export function sequenceOf(loop: Loop): number | undefined {
  try {
    return loop.getDiskSequence();
  } catch (error) {
    if (isErrno(error, EINVAL) || isErrno(error, ENOTTY)) return undefined;
    throw error;
  }
}

/**
 * Identifies the file of an open device: by its disk sequence number, which changes
 * when the file is exchanged, or before Linux 5.15 by the device and inode of the file.
 */
export function fileMark(loop: Loop): number | string {
  const sequence = sequenceOf(loop);
  if (sequence !== undefined) return sequence;
  const { device, inode } = loop.getInfo();
  return `${device}:${inode}`;
}

/**
 * Returns `true` if a released device is free: nothing is attached, or another binding
 * is. For a read-only device, a changed disk sequence number is no proof, because
 * another process may have exchanged the file.
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

/** Checks once whether a device is free, which is the usual case, without waiting. */
export function isFreeNow(device: Released): boolean {
  return !device.partscan && isFree(device);
}

/** Waits until other processes have closed the device. Returns `false` on timeout. */
export async function isFreeWithin(
  device: Released,
  limits: WaitOptions,
): Promise<boolean> {
  const looks = await pollUntil(() => isFree(device), limits);
  // After more than one check, another process had it open.
  if (looks !== undefined && (looks > 1 || device.partscan)) {
    waitForLastClose(device.minor);
  }
  return looks !== undefined;
}

/**
 * Waits until the kernel has finished detaching. If another process closed the device
 * last, the kernel may still be removing its partitions; opening the device waits for
 * that.
 */
function waitForLastClose(minor: number): void {
  try {
    new Loop(minor, { readOnly: true }).close();
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
  }
}

/** Fallback of `isFree` for systems without sysfs: queries the device itself. */
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
    if (isErrno(error, ENXIO)) return false; // the last process is about to close it
    throw error;
  }
}

/**
 * Retries a change that is refused with `EBUSY`. From Linux 6.19 on,
 * `LOOP_SET_STATUS64` is refused while a program holds the disk or a partition
 * exclusively, as mkfs and fsck do for a moment.
 *
 * @throws {LoopError} If the device is held for longer (`EBUSY`).
 */
export async function retryWhileHeld<T>(
  change: () => T | Promise<T>,
  { timeout, signal }: WaitOptions = {
    timeout: BRIEF_USE,
    signal: undefined,
  },
): Promise<T> {
  let done: { result: T } | undefined;
  let refusal: LoopError | undefined;
  await pollUntil(async () => {
    try {
      done = { result: await change() };
    } catch (error) {
      if (!isErrno(error, EBUSY)) throw error;
      refusal = error;
    }
    return done !== undefined;
  }, { timeout: Math.min(BRIEF_USE, timeout), signal });
  if (done === undefined) throw refusal;
  return done.result;
}
