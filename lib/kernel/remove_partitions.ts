/** Removes the kernel's partitions of a device before its bytes change. */
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
 * Removes the partitions of a device, which would otherwise show other bytes than
 * before. Returns a function that restores them.
 *
 * @throws {LoopError} If one of them is in use (`EBUSY`); all of them are then still
 * there.
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
