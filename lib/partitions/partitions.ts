/** Partitions that appear: whether or not the kernel can read the table, and udev is there. */
import { DEFAULT_TIMEOUT, type Limits } from "../waiting.ts";
import { checkOptions, checkSignal, checkTimeout } from "../arguments.ts";
import type { DeviceRef } from "../device_ref.ts";
import { openBound } from "../detach.ts";

/** A partition of a loop device: plain data. */
export interface Partition {
  /** The number of the partition: 1 for `/dev/loop3p1`. */
  number: number;
  /** The path of its node: `/dev/loop3p1`. */
  path: string;
  /** Where it begins on the disk, in bytes. */
  start: number;
  /** Its size in bytes. Of an extended partition, which Linux shows only in part, its full size. */
  size: number;
  /** GPT: the type GUID, in upper case. MBR: `"0x83"`. */
  type: string;
  /** GPT: its name, when it has one. */
  name?: string;
  /** GPT: its GUID, in upper case. MBR: disk id and number, `"1234abcd-01"`. */
  uuid?: string;
}

/** How {@linkcode partitions} waits. */
export interface PartitionsOptions {
  /**
   * How many milliseconds to wait until the nodes are there.
   *
   * @default {5000}
   */
  timeout?: number | undefined;
  /** Ends the waiting. */
  signal?: AbortSignal | undefined;
}

/**
 * Makes the partitions of a device appear, and tells what they are. Their paths can be
 * opened when it resolves.
 *
 * The table, GPT or MBR, is read here. What the kernel has not found, because it has no
 * parser or has lost a race, is added (`BLKPG_ADD_PARTITION`); `partscan` is turned on,
 * so that the kernel drops them when the device is detached, however that happens. A
 * device without a table has no partitions, which is no error.
 *
 * Requires `--allow-ffi` and root.
 *
 * @throws {LoopError} `EUCLEAN` when the table is damaged: the message says what is;
 * `ETIMEDOUT` when a node does not appear in time: it says which; `EBUSY` when another
 * partition is in the way and in use; `ENXIO` when no file is attached
 * @throws {StaleDeviceError} when the device is bound to something else by now
 *
 * @example The partitions of an image
 * ```ts
 * import { attach, openMemory, partitions } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using memory = openMemory(1 << 20); // without a table
 * await using device = await attach(memory, { partscan: true });
 * assertEquals(await partitions(device), []);
 * ```
 */
export async function partitions(
  device: DeviceRef,
  options: PartitionsOptions = {},
): Promise<Partition[]> {
  const waiting = checkPartitionsOptions(options);
  // Read when it is needed: most programs have no partitions.
  const { showPartitions } = await import("./show.ts");
  using loop = openBound(device, "show the partitions of");
  return await showPartitions(loop, waiting);
}

/** Checks the options. An abort that has happened already is thrown. */
export function checkPartitionsOptions(options: PartitionsOptions): Limits {
  checkOptions(options, ["timeout", "signal"]);
  const timeout = options.timeout === undefined
    ? DEFAULT_TIMEOUT
    : checkTimeout(options.timeout);
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  return { timeout, signal };
}
