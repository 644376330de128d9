/** Partitions inside of partitions, which the kernel reads and we do not. */
import { FIRST_LOGICAL, type TableEntry } from "./table_entry.ts";

/** MBR types of partitions with a table of their own: Unixware, Minix, Solaris (old and new), FreeBSD, OpenBSD, NetBSD. */
const SLICED = ["0x63", "0x81", "0x82", "0xbf", "0xa5", "0xa6", "0xa9"];

/** Whether a partition that the kernel has, and the MBR has not, may be a slice of one that it has. */
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
