/**
 * Creates the partitions of a device, even if the kernel cannot read the table or udev
 * is missing.
 */
import { DEFAULT_TIMEOUT, type WaitOptions } from "../waiting.ts";
import { checkOptions, checkSignal, checkTimeout } from "../arguments.ts";
import type { DeviceRef } from "../device_ref.ts";
import { openAttached } from "../attaching/open_attached.ts";
import { closeInBackground } from "../attaching/release.ts";
import type { Partition } from "./partition.ts";
import type { ShownTable } from "./appear.ts";

/** Options of {@linkcode partitions}. */
export interface PartitionsOptions {
  /**
   * Time in milliseconds to wait for the nodes to appear.
   *
   * @default {5000}
   */
  timeout?: number | undefined;
  /** Signal used to abort the wait. The promise rejects with its reason. */
  signal?: AbortSignal | undefined;
}

/**
 * Creates the partitions of a device and describes them. Their paths can be opened once
 * the promise resolves. If `/dev` is not a devtmpfs and lacks nodes for them, as in a
 * container, the paths are in a private directory, which `detach` removes.
 *
 * The library reads the table (GPT or MBR) entry by entry, as the kernel does. Anything
 * odd about an entry is reported as its `problem`. Partitions that the kernel did not
 * find, because it has no parser or lost a race, are added (`BLKPG_ADD_PARTITION`).
 * `partscan` is turned on, so that the kernel removes them when the device is detached,
 * however that happens. Partitions of an earlier table are moved, and those that have
 * grown in place are enlarged, mounted or not. Partitions whose table only the kernel
 * can read (BSD, Sun, Apple …) are listed without a type. A device without a table has
 * no partitions, which is not an error.
 *
 * The path of a regular file is read as an image, without attaching it. Its partitions
 * have the names that sfdisk uses (`disk.img1`, `disk2p1`); no such files need to
 * exist. If the GPT of an image was written for another sector size than 512 bytes,
 * that size is used.
 *
 * Requires `--allow-ffi`, and root for devices.
 *
 * @param device The device, or the path of an image. If it is a row of
 * {@linkcode list}, its identity is checked, from Linux 5.15 on.
 * @param options Limits for waiting for the nodes.
 * @returns The partitions, by number.
 * @throws {LoopError} If nothing in the table can be used (`EUCLEAN`; the message says
 * why), if a node does not appear in time (`ETIMEDOUT`; the message says which) or
 * cannot be created (`ENOENT`), if a node may not be opened (`EPERM`, `EACCES`), or if
 * no file is attached (`ENXIO`).
 * @throws {LoopBusyError} If a partition that would have to move is in use. Nothing was
 * changed, unless the message names others that could not be restored.
 * @throws {StaleDeviceError} If the device is now bound to another file.
 *
 * @example List the partitions of an image
 * ```ts
 * import { partitions } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const disk = new Uint8Array(4 << 20);
 * disk.set([0x55, 0xaa], 510); // an MBR
 * disk[450] = 0x83; // with one Linux partition
 * new DataView(disk.buffer).setUint32(454, 2048, true); // from sector 2048
 * new DataView(disk.buffer).setUint32(458, 4096, true); // of 4096 sectors
 * const path = await Deno.makeTempFile({ suffix: ".img" });
 * await Deno.writeFile(path, disk);
 *
 * const [partition] = await partitions(path); // no root needed
 * assertEquals(partition?.path, `${path}1`);
 * assertEquals(partition?.size, 2 << 20);
 * await Deno.remove(path);
 * ```
 */
export async function partitions(
  device: DeviceRef,
  options: PartitionsOptions = {},
): Promise<Partition[]> {
  if (isAttachment(device)) return await device.partitions(options);
  return (await partitionTable(device, options)).partitions;
}

/**
 * Reads the partitions like {@linkcode partitions}, with the entries that cannot be
 * shown and the size of the disk.
 */
export async function partitionTable(
  device: DeviceRef,
  options: PartitionsOptions = {},
): Promise<ShownTable> {
  const waiting = checkPartitionsOptions(options);
  // Loaded on demand: most programs have no partitions.
  const { readImage } = await import("./image_file.ts");
  const image = await readImage(device, waiting.signal);
  if (image !== undefined) return image;
  const { showTable } = await import("./appear.ts");
  const loop = openAttached(device, "show the partitions of");
  try {
    return await showTable(loop, waiting);
  } finally {
    // If all others have closed it, the kernel writes back and may detach.
    await closeInBackground(loop, () => loop.close());
  }
}

/**
 * Returns `true` for an `Attachment`, which has its own nodes if there are none in
 * `/dev`.
 */
function isAttachment(device: DeviceRef): device is DeviceRef & {
  partitions(options: PartitionsOptions): Promise<Partition[]>;
} {
  return typeof device === "object" && device !== null &&
    "partitions" in device && typeof device.partitions === "function";
}

/** Validates the options. Throws if the signal is already aborted. */
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
