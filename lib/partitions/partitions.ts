/** Partitions that appear: whether or not the kernel can read the table, and udev is there. */
import { DEFAULT_TIMEOUT, type WaitOptions } from "../waiting.ts";
import { checkOptions, checkSignal, checkTimeout } from "../arguments.ts";
import type { DeviceRef } from "../device_ref.ts";
import { openAttached } from "../attaching/open_attached.ts";
import type { Partition } from "./partition.ts";

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
 * @param device The device. With what {@linkcode list} gave its identity is checked.
 * @param options How long to wait for nodes.
 * @returns The partitions, by number.
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
  if (isAttachment(device)) return await device.partitions(options);
  const waiting = checkPartitionsOptions(options);
  // Read when it is needed: most programs have no partitions.
  const { showPartitions } = await import("./show.ts");
  using loop = openAttached(device, "show the partitions of");
  return await showPartitions(loop, waiting);
}

/** An `Attachment` is a reference too, with nodes of its own where there are none in `/dev`. */
function isAttachment(device: DeviceRef): device is DeviceRef & {
  partitions(options: PartitionsOptions): Promise<Partition[]>;
} {
  return typeof device === "object" && device !== null &&
    "partitions" in device && typeof device.partitions === "function";
}

/** Checks the options. An abort that has happened already is thrown. */
export function checkPartitionsOptions(
  options: PartitionsOptions,
): WaitOptions {
  checkOptions(options, ["timeout", "signal"]);
  const timeout = options.timeout === undefined
    ? DEFAULT_TIMEOUT
    : checkTimeout(options.timeout);
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  return { timeout, signal };
}
