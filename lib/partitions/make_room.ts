/** Removes partitions of an earlier table, all or none of them if the kernel permits. */
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
 * @throws {LoopBusyError} If one in the way is in use. All of them are then still
 * there, except those that the error names: the kernel refuses to restore them.
 */
export async function makeRoom(
  loop: Loop,
  inTheWay: readonly Doomed[],
  stale: readonly Doomed[],
  waiting: WaitOptions,
): Promise<number[]> {
  const timeout = Math.min(BRIEF_USE, waiting.timeout);
  const removed: Doomed[] = [];
  const lost = new Set<Doomed>();
  let busy: Doomed | undefined;
  try {
    const looks = await pollUntil(() => {
      // Start with the one that was in use, so that nothing has to be restored if it
      // still is.
      const order = busy === undefined ? inTheWay : [busy, ...inTheWay];
      busy = order.find((one) =>
        !removed.includes(one) && !remove(loop, one, removed)
      );
      if (busy !== undefined) {
        restore(loop, removed).forEach((one) => lost.add(one));
      }
      return busy === undefined;
    }, { ...waiting, timeout });
    if (looks === undefined && busy !== undefined) {
      throw await busyError(loop, busy, [...lost], waiting.signal);
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
  if (!isThere(loop, doomed)) return true;
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

/** Returns `true` if the partition exists and has not changed. */
function isThere(loop: Loop, doomed: Doomed): boolean {
  const now = extentOf(loop.minor, doomed);
  return now?.start === doomed.start && now.size === doomed.size;
}

/**
 * Restores partitions. Returns those that the kernel refuses: others have taken their
 * place, or they are no longer on the disk.
 */
function restore(loop: Loop, removed: Doomed[]): Doomed[] {
  return removed.splice(0).filter((one) =>
    addPartition(loop.fd, one) < 0 && !isThere(loop, one)
  );
}

/** Maximum number of partitions named in a message. */
const MAX_NAMED = 10;

function describeLost(lost: readonly Doomed[]): string {
  const names = lost.slice(0, MAX_NAMED).map(({ name }) => `/dev/${name}`);
  const rest = lost.length - names.length;
  return [...names, ...rest > 0 ? [`${rest} more`] : []].join(", ");
}

async function busyError(
  loop: Loop,
  busy: Doomed,
  lost: readonly Doomed[],
  signal: AbortSignal | undefined,
): Promise<LoopBusyError> {
  const path = `/dev/${busy.name}`;
  const { findHolders } = await import("../kernel/holder_search.ts");
  const { holders, complete } = await findHolders(loop.minor, { signal })
    .catch(() => ({ holders: [], complete: false }));
  const ours = holders.filter(({ device }) => device === path);
  const names = describeHolders({ holders: ours, complete });
  return new LoopBusyError(`Cannot move partition ${quote(path)}`, {
    errno: EBUSY,
    operation: "BLKPG",
    path,
    holders: ours,
    hint: [
      "it is in use at its old position",
      lost.length === 0
        ? "nothing was changed"
        : `removed, and refused by the kernel when restored: ${
          describeLost(lost)
        }`,
      ...names,
    ].join("; "),
  });
}
