/** Prevents a file from being attached twice over the same bytes. */
import {
  devicesBackedBy,
  devicesBackedLike,
  type LoopDevice,
} from "../kernel/attached_devices.ts";
import { LoopError, quote } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { bindingOf } from "../kernel/loop_sysfs.ts";
import { LO_FLAGS_READ_ONLY } from "../sys/loop_uapi.ts";
import {
  EACCES,
  EAGAIN,
  EBUSY,
  EINVAL,
  ENOLCK,
  ENOSYS,
  EOPNOTSUPP,
} from "../sys/errno.ts";
import { F_RDLCK, F_UNLCK, F_WRLCK, lockBytes } from "../sys/libc.ts";
import { sleep } from "../waiting.ts";
import type { Backing } from "./backing.ts";

/** A range of bytes in a file. */
export interface Range {
  /** The first byte. */
  readonly start: bigint;
  /** Number of bytes; 0 means up to the end of the file, even if it grows. */
  readonly length: bigint;
}

/** The range of a file that is about to be attached. */
export interface Claim extends Range {
  readonly backing: Backing;
  readonly readOnly: boolean;
}

/** Errors of a file system without locks. */
const NO_LOCKS = [EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP];

/** Time that a device being detached may hold its lock after it is no longer bound. */
const FREEING_TIMEOUT = 500; // milliseconds
const FREEING_PAUSE = 5; // milliseconds
/** Tries in any case: on a starved machine, the process that frees the device waits too. */
const MIN_TRIES = 64;

/**
 * Locks the range for the open file description that will be bound. The loop device
 * keeps that description open, so the lock lasts as long as the binding, even after
 * this process has ended, and there is no race between processes that lock. Readers
 * share a lock; a writer excludes all others. Does nothing if the file system has no
 * locks.
 *
 * @param isBeingFreed Returns `true` if a device that has the lock has no users left.
 * @throws {LoopError} If another process has locked some of the bytes (`EBUSY`).
 */
export async function lockRange(
  claim: Claim,
  isBeingFreed: (device: LoopDevice) => Promise<boolean>,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (tryLockRange(claim)) return;
  const start = performance.now();
  for (let tries = 1;; tries++) {
    const isLate = tries >= MIN_TRIES &&
      performance.now() - start >= FREEING_TIMEOUT;
    // A device that is not visible may be the one that is being freed: sysfs forgets it
    // before the kernel closes the file.
    const device = findLocker(claim);
    const mayPass = !isLate &&
      (device === undefined || await isBeingFreed(device));
    if (!mayPass) throw lockedError(claim);
    await sleep(FREEING_PAUSE, signal);
    if (tryLockRange(claim)) return;
  }
}

/** Locks the range. Returns `false` if another process has locked some of the bytes. */
export function tryLockRange(claim: Claim): boolean {
  const { backing, readOnly, start } = claim;
  const result = lockBytes(
    backing.fd,
    readOnly ? F_RDLCK : F_WRLCK, // an exclusive lock requires a descriptor open for writing
    start,
    lengthToLock(claim),
  );
  if (result >= 0 || NO_LOCKS.includes(-result)) return true;
  if (result === -EAGAIN || result === -EACCES) return false;
  throw new LoopError(`Cannot lock bytes of ${backing.name}`, {
    errno: -result,
    operation: "fcntl",
  });
}

/**
 * Locks the range of the file that a device is about to be given in exchange.
 *
 * @throws {LoopError} If the device is writable (`EINVAL`), or if another process has
 * locked some of the bytes (`EBUSY`).
 */
export function lockForChange(claim: Claim, loop: Loop): void {
  if (tryLockRange(claim)) return;
  // A writable device may itself have locked the file. The kernel exchanges only the
  // files of read-only devices.
  const isReadOnly = (loop.getInfo().flags & LO_FLAGS_READ_ONLY) !== 0;
  if (isReadOnly) throw lockedError(claim, loop);
  throw new LoopError(`Cannot change the backing file of ${quote(loop.path)}`, {
    errno: EINVAL,
    operation: "LOOP_CHANGE_FD",
    path: loop.path,
    hint: "the device must be read-only",
  });
}

/** Releases the locks of an open file description outside the range. */
export function unlockOutside(fd: number, range: Range): void {
  const length = lengthToLock(range);
  if (range.start > 0n) lockBytes(fd, F_UNLCK, 0n, range.start);
  if (length > 0n) lockBytes(fd, F_UNLCK, range.start + length, 0n);
}

/** Largest offset in a file. */
const MAX_OFFSET = 2n ** 63n - 1n;

/**
 * Returns the length to lock: a lock must not end past the largest offset, but a limit
 * may.
 */
function lengthToLock({ start, length }: Range): bigint {
  return start + length > MAX_OFFSET ? 0n : length;
}

/**
 * Creates the error for bytes that are already locked. It names the device that holds
 * the lock, if one is found.
 */
export function lockedError(
  claim: Claim,
  own?: { readonly minor: number; readonly path: string },
): LoopError {
  const action = own === undefined
    ? attachAction(claim)
    : `Cannot use ${claim.backing.name} for ${quote(own.path)}`;
  const device = findLocker(claim, own?.minor);
  if (device !== undefined) return overlapError(action, device);
  const hint =
    "another program, such as a virtual machine, has locked some of its bytes";
  return new LoopError(action, {
    errno: EBUSY,
    operation: "fcntl",
    hint: own === undefined
      ? `${hint}; use overlap: "allow" to attach it anyway`
      : hint,
  });
}

/** Finds the device that holds a conflicting lock, if any; readers share theirs. */
function findLocker(
  claim: Claim,
  ownMinor?: number,
): LoopDevice | undefined {
  return overlapping(claim).find(({ minor, readOnly }) =>
    minor !== ownMinor && !(readOnly && claim.readOnly)
  );
}

/** Throws if a device already shows some of the bytes. */
export function refuseOverlap(claim: Claim): void {
  const [found] = overlapping(claim);
  if (found !== undefined) throw overlapError(attachAction(claim), found);
}

/**
 * Throws if a device would begin to show bytes of its file that another device shows,
 * unless both only read. For a process that did not attach it, and cannot move its lock.
 */
export function refuseNewOverlap(
  loop: Loop,
  { offset, sizelimit }: Record<"offset" | "sizelimit", bigint | undefined>,
): void {
  const info = loop.getInfo();
  const wanted = {
    start: offset ?? info.offset,
    length: sizelimit ?? info.sizelimit,
  };
  const isReadOnly = loop.isReadOnly();
  const found = devicesBackedLike(info).find((other) =>
    other.device.minor !== loop.minor &&
    !(other.device.readOnly && isReadOnly) &&
    overlap(wanted, rangeOf(other)) && !overlap(rangeOf(info), rangeOf(other))
  );
  if (found !== undefined) {
    throw overlapError(`Cannot change ${quote(loop.path)}`, found.device);
  }
}

/**
 * Throws if another device shows some of the bytes after ours was bound. Read-only
 * users and other tools take no exclusive lock, so two processes can still bind at
 * once. Then the device that was bound first stays. If the other process had already
 * checked before our device became visible, it stays, and this one gives up after a
 * number of checks.
 */
export async function refuseRivals(
  claim: Claim,
  own: { minor: number; diskSequence: number },
  signal: AbortSignal | undefined,
): Promise<void> {
  const isOlder = olderThan(own);
  for (let looks = 1;; looks++) {
    const rivals = overlapping(claim)
      .filter((device) => device.minor !== own.minor);
    if (rivals.length === 0) return;
    const older = rivals.find(isOlder);
    if (older !== undefined || looks === RIVAL_LOOKS) {
      throw overlapError(attachAction(claim), older ?? rivals[0]!);
    }
    await sleep(RIVAL_PAUSE, signal);
  }
}

/**
 * Returns `true` if a device was bound before another one. Before Linux 5.15, the
 * inodes of the bindings are compared, which also rise.
 */
function olderThan(
  own: { minor: number; diskSequence: number },
): (device: LoopDevice) => boolean {
  if (own.diskSequence !== 0) {
    return ({ diskSequence }) => diskSequence < own.diskSequence;
  }
  const binding = bindingOf(own.minor);
  return ({ minor }) => {
    const other = bindingOf(minor);
    return binding === undefined || (other !== undefined && other < binding);
  };
}

/** Number of checks before the older device gives up. */
const RIVAL_LOOKS = 50;
const RIVAL_PAUSE = 5; // milliseconds

/** Finds the devices that show some of the bytes. */
function overlapping(claim: Claim): LoopDevice[] {
  return devicesBackedBy(claim.backing.stat)
    .filter((record) => overlap(claim, rangeOf(record)))
    .map(({ device }) => device);
}

/** Returns the range that a device shows. */
function rangeOf(
  { offset, sizelimit }: Readonly<Record<"offset" | "sizelimit", bigint>>,
): Range {
  return { start: offset, length: sizelimit };
}

function attachAction({ backing }: Claim): string {
  return `Cannot attach ${backing.name}`;
}

function overlapError(action: string, { path }: LoopDevice): LoopError {
  return new LoopError(action, {
    errno: EBUSY,
    operation: "attach",
    path,
    hint: `${path} already shows some of its bytes`,
  });
}

/** Returns `true` if two ranges have a byte in common. */
export function overlap(a: Range, b: Range): boolean {
  const startsBeforeEnd = (one: Range, other: Range) =>
    other.length === 0n || one.start < other.start + other.length;
  return startsBeforeEnd(a, b) && startsBeforeEnd(b, a);
}
