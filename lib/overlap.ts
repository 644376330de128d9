/** Keeping a file from being attached twice over the same bytes. */
import type { Backing } from "./backing.ts";
import { sleep } from "./detach.ts";
import { devicesOver } from "./devices.ts";
import { LoopError } from "./errors.ts";
import { EACCES, EAGAIN, EBUSY } from "./sys/errno.ts";
import { tryLockRange } from "./sys/libc.ts";

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

/** A device that is being detached keeps its lock for a moment longer than its binding. */
const LOCK_TRIES = 20;
const LOCK_PAUSE = 5; // milliseconds

/**
 * Locks the bytes for the open file description that will be bound. The loop device
 * keeps it open, so the lock lasts as long as the binding, also when this process is
 * gone: among those who lock there is no race.
 */
export async function lockRange(
  claim: Claim,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (let tries = 1;; tries++) {
    const result = tryLockRange(
      claim.backing.fd,
      !claim.readOnly, // a lock that excludes all needs a descriptor for writing
      claim.start,
      claim.length,
    );
    if (result >= 0) return;
    const isTaken = result === -EAGAIN || result === -EACCES;
    const mayPass = isTaken && tries < LOCK_TRIES && !isAttached(claim);
    if (!mayPass) throw lockError(claim, -result, isTaken);
    await sleep(LOCK_PAUSE, signal);
  }
}

function isAttached(claim: Claim): boolean {
  return devicesOver(claim.backing.stat).some(({ offset, sizelimit }) =>
    overlap(claim, { start: offset, length: sizelimit })
  );
}

function lockError(claim: Claim, errno: number, isTaken: boolean): LoopError {
  return new LoopError(`Cannot attach ${claim.backing.name}`, {
    errno: isTaken ? EBUSY : errno,
    operation: "fcntl",
    hint: isTaken
      ? "some of its bytes are locked: they are behind another loop device or in use by a virtual machine"
      : "its bytes cannot be locked, so that they are not behind another loop device cannot be assured",
  });
}

/**
 * Throws when a device shows some of the bytes already. With `before`, only bindings
 * older than that disk sequence number count: of two who bind at once one stays.
 */
export function refuseOverlap(
  claim: Claim,
  before: { minor: number; diskSequence: number } | undefined,
): void {
  for (const { device, offset, sizelimit } of devicesOver(claim.backing.stat)) {
    const isOlder = before === undefined ||
      (device.minor !== before.minor &&
        (before.diskSequence === 0 ||
          device.diskSequence < before.diskSequence));
    if (!isOlder || !overlap(claim, { start: offset, length: sizelimit })) {
      continue;
    }
    throw new LoopError(`Cannot attach ${claim.backing.name}`, {
      errno: EBUSY,
      operation: "attach",
      path: device.path,
      hint: `some of its bytes are behind ${device.path} already`,
    });
  }
}

/** Whether two ranges have a byte in common. */
export function overlap(a: Range, b: Range): boolean {
  const startsBeforeEnd = (one: Range, other: Range) =>
    other.length === 0n || one.start < other.start + other.length;
  return startsBeforeEnd(a, b) && startsBeforeEnd(b, a);
}
