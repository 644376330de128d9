/** Recognizes partitions inside partitions, whose tables only the kernel reads. */
import { FIRST_LOGICAL, type TableEntry } from "./table_entry.ts";

/** MBR types of partitions with a table of their own: Unixware, Minix, Solaris (old and new), FreeBSD, OpenBSD, NetBSD. */
const SLICED = ["0x63", "0x81", "0x82", "0xbf", "0xa5", "0xa6", "0xa9"];

/**
 * Returns `true` if a partition that only the kernel has may be a slice of one in the
 * MBR.
 */
export function isSlice(
  partition: { number: number; start: number; size: number },
  entries: readonly TableEntry[],
): boolean {
  return partition.number >= FIRST_LOGICAL &&
    entries.some(({ type, start, size }) =>
      SLICED.includes(type) && partition.start >= start &&
      partition.start + partition.size <= start + size
    );
}
