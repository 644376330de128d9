/** Removing partitions of an earlier table, all or none of them. */
import { describeHolders } from "../describe_holder.ts";
import { LoopBusyError, quote, unwrap } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { extentOf } from "../kernel/loop_sysfs.ts";
import { addPartition, deletePartition } from "../sys/blk_uapi.ts";
import { EBUSY, ENXIO } from "../sys/errno.ts";
import { BRIEF_USE, pollUntil, type WaitOptions } from "../waiting.ts";

/** A partition that is to go. */
interface Doomed {
  readonly number: number;
  readonly name: string;
  readonly start: number;
  readonly size: number;
}

/**
 * Removes partitions: those in the way of others all or none, stale ones where they are
 * not in use. Gives the numbers of stale ones that stay.
 *
 * @throws {LoopBusyError} when one in the way is in use, with all of them still there
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
      // First the one that was in use: then nothing has to be put back.
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

/** Whether it has gone, or is not what it was any more; not when it is in use. */
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

/** Puts partitions back; what has taken their place meanwhile stays. */
function restore(loop: Loop, removed: Doomed[]): void {
  for (const one of removed.splice(0)) addPartition(loop.fd, one);
}

async function busyError(loop: Loop, busy: Doomed): Promise<LoopBusyError> {
  const path = `/dev/${busy.name}`;
  const { findHolders } = await import("../holder_search.ts");
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
      "it is in use where the table had it before, and nothing was changed",
      ...names,
    ].join("; "),
  });
}
