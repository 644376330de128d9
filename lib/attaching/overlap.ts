/** Keeping a file from being attached twice over the same bytes. */
import type { Backing } from "./backing.ts";
import { sleep } from "../waiting.ts";
import { devicesOver, type LoopDevice } from "../devices.ts";
import { LoopError } from "../errors.ts";
import { EACCES, EAGAIN, EBUSY } from "../sys/errno.ts";
import { tryLockRange } from "../sys/libc.ts";

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
    const mayPass = isTaken && tries < LOCK_TRIES &&
      overlapping(claim).length === 0;
    if (!mayPass) throw lockError(claim, -result, isTaken);
    await sleep(LOCK_PAUSE, signal);
  }
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

/** Throws when a device shows some of the bytes already. */
export function refuseOverlap(claim: Claim): void {
  const [found] = overlapping(claim);
  if (found !== undefined) throw overlapError(claim, found);
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
  for (let looks = 1;; looks++) {
    const rivals = overlapping(claim)
      .filter((device) => device.minor !== own.minor);
    if (rivals.length === 0) return;
    const older = rivals.find(({ diskSequence }) =>
      own.diskSequence === 0 || diskSequence < own.diskSequence
    );
    if (older !== undefined || looks === RIVAL_LOOKS) {
      throw overlapError(claim, older ?? rivals[0]!);
    }
    await sleep(RIVAL_PAUSE, signal);
  }
}

/** So long the older one waits for the younger ones to go. */
const RIVAL_LOOKS = 50;
const RIVAL_PAUSE = 5; // milliseconds

/** The devices that show some of the bytes. */
function overlapping(claim: Claim): LoopDevice[] {
  return devicesOver(claim.backing.stat)
    .filter(({ offset, sizelimit }) =>
      overlap(claim, { start: offset, length: sizelimit })
    )
    .map(({ device }) => device);
}

function overlapError({ backing }: Claim, { path }: LoopDevice): LoopError {
  return new LoopError(`Cannot attach ${backing.name}`, {
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
