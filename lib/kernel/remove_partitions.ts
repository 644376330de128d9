/** Partitions that the kernel has for a device, and that show bytes of its backing file. */
import { LoopError, quote } from "../errors.ts";
import { addPartition, deletePartition } from "../sys/blk_uapi.ts";
import { EBUSY, ENXIO } from "../sys/errno.ts";
import { extentOf, partitionsOf } from "./loop_sysfs.ts";

/** An open device. */
interface Device {
  readonly fd: number;
  readonly minor: number;
  readonly path: string;
}

/**
 * Removes the partitions of a device, which would show other bytes than before, and gives
 * what puts them back.
 *
 * @throws {LoopError} `EBUSY` when one of them is in use, with all of them still there
 */
export function removePartitions(device: Device, action: string): () => void {
  const { fd, minor, path } = device;
  const removed: { number: number; start: number; size: number }[] = [];
  const restore = () => {
    for (const partition of removed) addPartition(fd, partition);
  };
  for (const partition of partitionsOf(minor)) {
    const { name, number } = partition;
    const extent = extentOf(minor, partition);
    const result = deletePartition(fd, number);
    if (result === -ENXIO) continue;
    if (result < 0) {
      restore();
      throw new LoopError(`Cannot ${action} ${quote(path)}`, {
        errno: -result,
        operation: "BLKPG",
        path,
        hint: result === -EBUSY
          ? `its partition ${quote(`/dev/${name}`)} is in use`
          : `its partition ${quote(`/dev/${name}`)} cannot be removed`,
      });
    }
    if (extent !== undefined) removed.push({ number, ...extent });
  }
  return restore;
}
