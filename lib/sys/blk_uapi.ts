/**
 * Ioctls that every block device supports: `<linux/fs.h>` and `<linux/blkpg.h>`. The
 * numbers are those of 64-bit architectures.
 */
import { BLKPG_IOCTL_ARG, BLKPG_PARTITION } from "./layouts.ts";
import { addressOf, ioctlPointer } from "./libc.ts";

/**
 * Makes a device read-only or writable. The setting outlives the binding. Argument:
 * `const int *`.
 */
export const BLKROSET = 0x125d;
/** Returns whether the device is read-only. Argument: `int *`. */
export const BLKROGET = 0x125e;
/** Writes back and drops the cached pages. No argument. */
export const BLKFLSBUF = 0x1261;
/** Returns the logical block size in bytes. Argument: `int *`. */
export const BLKSSZGET = 0x1268;
/** Returns the block size of the page cache of the device in bytes. Argument: `int *`. */
export const BLKBSZGET = 0x80081270;
/**
 * Sets the block size of the page cache, and writes back and drops the cached pages.
 * Argument: `int *`.
 */
export const BLKBSZSET = 0x40081271;
/** Returns the size in bytes. Argument: `u64 *`. */
export const BLKGETSIZE64 = 0x80081272;
/** Returns the disk sequence number, Linux 5.15. Argument: `u64 *`. */
export const BLKGETDISKSEQ = 0x80081280;
/** Adds, resizes or removes a partition. Argument: `struct blkpg_ioctl_arg *`. */
export const BLKPG = 0x1269;

// linux/blkpg.h
const BLKPG_ADD_PARTITION = 1;
const BLKPG_DEL_PARTITION = 2;
const BLKPG_RESIZE_PARTITION = 3;

/** `struct blkpg_partition`. The kernel gets its address, so it is never collected. */
const partition = new Uint8Array(BLKPG_PARTITION.size);
const partitionView = new DataView(partition.buffer);

/** `BLKPG` with `BLKPG_ADD_PARTITION`: adds a partition. Start and size are bytes. */
export function addPartition(fd: number, extent: PartitionExtent): number {
  return placePartition(fd, BLKPG_ADD_PARTITION, extent);
}

/**
 * `BLKPG` with `BLKPG_RESIZE_PARTITION`: changes the size of a partition, even in use.
 * Its start must not change. The kernel also shrinks it under a mounted file system.
 */
export function resizePartition(fd: number, extent: PartitionExtent): number {
  return placePartition(fd, BLKPG_RESIZE_PARTITION, extent);
}

/** A partition, in bytes. */
interface PartitionExtent {
  readonly number: number;
  readonly start: number;
  readonly size: number;
}

function placePartition(
  fd: number,
  operation: number,
  { number, start, size }: PartitionExtent,
): number {
  partitionView.setBigInt64(BLKPG_PARTITION.start, BigInt(start), true);
  partitionView.setBigInt64(BLKPG_PARTITION.length, BigInt(size), true);
  return blkpg(fd, operation, number);
}

/** `BLKPG` with `BLKPG_DEL_PARTITION`: removes a partition. */
export function deletePartition(fd: number, number: number): number {
  return blkpg(fd, BLKPG_DEL_PARTITION, number);
}

function blkpg(fd: number, operation: number, number: number): number {
  partitionView.setInt32(BLKPG_PARTITION.pno, number, true);
  const argument = new Uint8Array(BLKPG_IOCTL_ARG.size);
  const view = new DataView(argument.buffer);
  view.setInt32(BLKPG_IOCTL_ARG.op, operation, true);
  view.setInt32(BLKPG_IOCTL_ARG.datalen, partition.length, true);
  view.setBigUint64(BLKPG_IOCTL_ARG.data, addressOf(partition), true);
  return ioctlPointer(fd, BLKPG, argument);
}
