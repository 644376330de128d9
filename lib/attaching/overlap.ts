/** Keeping a file from being attached twice over the same bytes. */
import {
  devicesBackedBy,
  type LoopDevice,
} from "../kernel/attached_devices.ts";
import { LoopError, quote } from "../errors.ts";
import { bindingOf } from "../kernel/loop_sysfs.ts";
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

/** The bytes of a file that a device shows. */
export interface Range {
  /** The first byte. */
  readonly start: bigint;
  /** How many; 0 means to the end of the file, wherever that will be. */
  readonly length: bigint;
}

/** What is to be attached. */
export interface Claim extends Range {
  readonly backing: Backing;
  readonly readOnly: boolean;
}

/** The file system of the file has no locks. */
const NO_LOCKS = [EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP];

/** A device that is being freed keeps its lock for a moment longer than its binding. */
const FREEING_TIMEOUT = 500; // milliseconds
/** One that is not to be seen any more keeps it for less. */
const UNSEEN_TIMEOUT = 100; // milliseconds
const FREEING_PAUSE = 5; // milliseconds

/**
 * Locks the bytes for the open file description that will be bound. The loop device
 * keeps it open, so the lock lasts as long as the binding, also when this process is
 * gone: among those who lock there is no race. Readers share a lock, a writer has it
 * alone. Without locks in the file system it does nothing.
 *
 * @param isBeingFreed Whether nobody uses a device any more that has the lock.
 * @throws {LoopError} `EBUSY`
 */
export async function lockRange(
  claim: Claim,
  isBeingFreed: (device: LoopDevice) => Promise<boolean>,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (tryLockRange(claim)) return;
  const start = performance.now();
  do {
    const device = findLocker(claim);
    const waited = performance.now() - start;
    const mayPass = device === undefined
      ? waited < UNSEEN_TIMEOUT
      : waited < FREEING_TIMEOUT && await isBeingFreed(device);
    if (!mayPass) throw lockedError(claim);
    await sleep(FREEING_PAUSE, signal);
  } while (!tryLockRange(claim));
}

/** Locks the bytes. `false`: others have locked some of them. */
export function tryLockRange(claim: Claim): boolean {
  const { backing, readOnly, start } = claim;
  const result = lockBytes(
    backing.fd,
    readOnly ? F_RDLCK : F_WRLCK, // to lock others out needs a descriptor for writing
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

/** Unlocks all that a description has locked, but for the range. */
export function unlockOutside(fd: number, range: Range): void {
  const length = lengthToLock(range);
  if (range.start > 0n) lockBytes(fd, F_UNLCK, 0n, range.start);
  if (length > 0n) lockBytes(fd, F_UNLCK, range.start + length, 0n);
}

/** The highest offset of a file. */
const MAX_OFFSET = 2n ** 63n - 1n;

/** A lock must not end past the highest offset, a limit may. */
function lengthToLock({ start, length }: Range): bigint {
  return start + length > MAX_OFFSET ? 0n : length;
}

/** The error for bytes that others have locked; it names their device, where one is found. */
export function lockedError(
  claim: Claim,
  own?: { readonly minor: number; readonly path: string },
): LoopError {
  const action = own === undefined
    ? attachAction(claim)
    : `Cannot use ${claim.backing.name} for ${quote(own.path)}`;
  const device = findLocker(claim, own?.minor);
  if (device !== undefined) return overlapError(action, device);
  return new LoopError(action, {
    errno: EBUSY,
    operation: "fcntl",
    hint:
      'another program has locked some of its bytes, as virtual machines do; overlap: "allow" attaches it all the same',
  });
}

/** The device whose lock is in the way, where one is found: readers share theirs. */
function findLocker(
  claim: Claim,
  ownMinor?: number,
): LoopDevice | undefined {
  return overlapping(claim).find(({ minor, readOnly }) =>
    minor !== ownMinor && !(readOnly && claim.readOnly)
  );
}

/** Throws when a device shows some of the bytes already. */
export function refuseOverlap(claim: Claim): void {
  const [found] = overlapping(claim);
  if (found !== undefined) throw overlapError(attachAction(claim), found);
}

/**
 * Throws when another device shows some of the bytes, after ours was bound: who only
 * reads cannot lock others out, and other tools do not lock. Of two who bind at once one
 * stays, mostly the older one. But the younger one may have looked before the older one
 * was to be seen, and stay: then it is the older one that goes.
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

/** Whether a device was bound before another. Before Linux 5.15 the inodes of bindings tell, which rise as well. */
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

/** So long the older one waits for the younger ones to go. */
const RIVAL_LOOKS = 50;
const RIVAL_PAUSE = 5; // milliseconds

/** The devices that show some of the bytes. */
function overlapping(claim: Claim): LoopDevice[] {
  return devicesBackedBy(claim.backing.stat)
    .filter(({ offset, sizelimit }) =>
      overlap(claim, { start: offset, length: sizelimit })
    )
    .map(({ device }) => device);
}

function attachAction({ backing }: Claim): string {
  return `Cannot attach ${backing.name}`;
}

function overlapError(action: string, { path }: LoopDevice): LoopError {
  return new LoopError(action, {
    errno: EBUSY,
    operation: "attach",
    path,
    hint: `some of its bytes are behind ${path} already`,
  });
}

/** Whether two ranges have a byte in common. */
export function overlap(a: Range, b: Range): boolean {
  const startsBeforeEnd = (one: Range, other: Range) =>
    other.length === 0n || one.start < other.start + other.length;
  return startsBeforeEnd(a, b) && startsBeforeEnd(b, a);
}
