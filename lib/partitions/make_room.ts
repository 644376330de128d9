/** Removes partitions of an earlier table, all or none of them. */
import { describeHolders } from "../describe_holder.ts";
import { LoopBusyError, quote, unwrap } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { extentOf } from "../kernel/loop_sysfs.ts";
import { addPartition, deletePartition } from "../sys/blk_uapi.ts";
import { EBUSY, ENXIO } from "../sys/errno.ts";
import { BRIEF_USE, pollUntil, type WaitOptions } from "../waiting.ts";

/** A partition to be removed. */
interface Doomed {
  readonly number: number;
  readonly name: string;
  readonly start: number;
  readonly size: number;
}

/**
 * Removes partitions: those in the way of others all or none, stale ones if they are
 * not in use. Returns the numbers of the stale ones that remain.
 *
 * @throws {LoopBusyError} If one in the way is in use; all of them are then still
 * there.
 */
export async function makeRoom(
  loop: Loop,
  inTheWay: readonly Doomed[],
  stale: readonly Doomed[],
  waiting: WaitOptions,
): Promise<number[]> {
  const timeout = Math.min(BRIEF_USE, waiting.timeout);
  const removed: Doomed[] = [];
  let busy: Doomed | undefined;
  try {
    const looks = await pollUntil(() => {
      // Start with the one that was in use, so that nothing has to be restored if it
      // still is.
      const order = busy === undefined ? inTheWay : [busy, ...inTheWay];
      busy = order.find((one) =>
        !removed.includes(one) && !remove(loop, one, removed)
      );
      if (busy !== undefined) restore(loop, removed);
      return busy === undefined;
    }, { ...waiting, timeout });
    if (looks === undefined && busy !== undefined) {
      throw await busyError(loop, busy);
    }
  } catch (error) {
    restore(loop, removed);
    throw error;
  }
  return stale.filter((one) => !remove(loop, one, []))
    .map(({ number }) => number);
}

/**
 * Removes a partition. Returns `true` if it is gone or has changed, `false` if it is in
 * use.
 */
function remove(loop: Loop, doomed: Doomed, removed: Doomed[]): boolean {
  const now = extentOf(loop.minor, doomed);
  if (now?.start !== doomed.start || now.size !== doomed.size) return true;
  const result = deletePartition(loop.fd, doomed.number);
  if (result === -EBUSY) return false;
  if (result === -ENXIO) return true;
  unwrap(result, () => ({
    action: `Cannot move partition ${quote(`/dev/${doomed.name}`)}`,
    operation: "BLKPG",
    path: loop.path,
  }));
  removed.push(doomed);
  return true;
}

/** Restores partitions, except where others have taken their place. */
function restore(loop: Loop, removed: Doomed[]): void {
  for (const one of removed.splice(0)) addPartition(loop.fd, one);
}

async function busyError(loop: Loop, busy: Doomed): Promise<LoopBusyError> {
  const path = `/dev/${busy.name}`;
  const { findHolders } = await import("../kernel/holder_search.ts");
  const { holders, complete } = await findHolders(loop.minor)
    .catch(() => ({ holders: [], complete: false }));
  const ours = holders.filter(({ device }) => device === path);
  const names = describeHolders({ holders: ours, complete });
  return new LoopBusyError(`Cannot move partition ${quote(path)}`, {
    errno: EBUSY,
    operation: "BLKPG",
    path,
    holders: ours,
    hint: [
      "it is in use at its old position; nothing was changed",
      ...names,
    ].join("; "),
  });
}
