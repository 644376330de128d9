/** Partitions that appear: whether or not the kernel can read the table, and udev is there. */
import { DEFAULT_TIMEOUT, type WaitOptions } from "../waiting.ts";
import { checkOptions, checkSignal, checkTimeout } from "../arguments.ts";
import type { DeviceRef } from "../device_ref.ts";
import { openAttached } from "../attaching/open_attached.ts";
import type { Partition } from "./partition.ts";
import type { ShownTable } from "./appear.ts";

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
 * The table, GPT or MBR, is read here, entry by entry as the kernel does: what is odd
 * about one is its `problem`. What the kernel has not found, because it has no parser or
 * has lost a race, is added (`BLKPG_ADD_PARTITION`); `partscan` is turned on, so that the
 * kernel drops them when the device is detached, however that happens. Partitions of an
 * earlier table are moved, and those that grew where they are become larger, mounted or
 * not. Partitions whose table only the kernel can read (BSD, Sun, Apple …) are listed
 * without a type. A device without a table has no partitions, which is no error.
 *
 * The path of a regular file is read as an image: nothing is attached, and its
 * partitions, for whoever attaches at their offsets, have the names that sfdisk gives them
 * (`disk.img1`, `disk2p1`), of which no file need exist. A table for sectors of another
 * size than 512 bytes is read for that size when it is a GPT.
 *
 * Requires `--allow-ffi`, and for devices root.
 *
 * @param device The device, or the path of an image. With what {@linkcode list} gave its
 * identity is checked.
 * @param options How long to wait for nodes.
 * @returns The partitions, by number.
 * @throws {LoopError} `EUCLEAN` when nothing in the table can be used: the message says
 * why; `ETIMEDOUT` when a node does not appear in time: it says which; `EPERM` or `EACCES`
 * when one may not be opened; `ENXIO` when no file is attached
 * @throws {LoopBusyError} when one that would have to move is in use: nothing was changed
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
  return (await partitionTable(device, options)).partitions;
}

/** As {@linkcode partitions}, with what cannot be shown, and the size of the disk. */
export async function partitionTable(
  device: DeviceRef,
  options: PartitionsOptions = {},
): Promise<ShownTable> {
  const waiting = checkPartitionsOptions(options);
  // Read when it is needed: most programs have no partitions.
  const { readImage } = await import("./image_file.ts");
  const image = await readImage(device);
  if (image !== undefined) return image;
  const { showTable } = await import("./appear.ts");
  using loop = openAttached(device, "show the partitions of");
  return await showTable(loop, waiting);
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
