/** Finds the holders of a device. */
import { checkNotRecycled, type DeviceRef, minorOf } from "./device_ref.ts";
import type { Holders } from "./holder.ts";

export type { Holders } from "./holder.ts";

/**
 * Finds the holders of a device and its partitions: mounts in every mount namespace
 * that is visible, swap, block devices on top of it, processes that have it open or
 * mapped, and processes that use a file system on it that is not mounted on any directory:
 * after a lazy unmount, or in a private mount, as {@linkcode mount} creates it.
 *
 * The device is not opened. Without root, processes and mount namespaces of other users
 * are not visible. The search never waits for a file system, takes up to three seconds,
 * reports up to 1000 holders of each kind, and does not block the event loop. Requires
 * `--allow-ffi`.
 *
 * @param device The device. If it is a row of {@linkcode list}, its identity is checked,
 * from Linux 5.15 on.
 * @returns The holders, and whether the search was complete.
 * @throws {StaleDeviceError} If the device is now bound to another file.
 * @throws {UnexpectedDevice} If the path does not lead to a whole loop device.
 * @throws {LoopError} If `/proc` or `/sys` cannot be read.
 *
 * @example Find out why a device is busy
 * ```ts
 * import { attach, holders, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using memory = openMemory(1 << 20);
 * await using device = await attach(memory);
 * const [holder] = (await holders(device)).holders;
 * assertEquals(holder?.kind, "process");
 * ```
 */
export async function holders(device: DeviceRef): Promise<Holders> {
  checkNotRecycled("examine", device);
  const minor = minorOf(device);
  // Loaded on demand: most programs never need it.
  const { findHolders } = await import("./kernel/holder_search.ts");
  return await findHolders(minor);
}
