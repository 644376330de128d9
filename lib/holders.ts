/** Who keeps a device busy. */
import { checkNotRecycled, type DeviceRef, minorOf } from "./device_ref.ts";
import type { Holders } from "./holder.ts";

export type { Holders } from "./holder.ts";

/**
 * Who keeps a device or its partitions busy: mounts, in every mount namespace that can
 * be seen, swap, other block devices on top, processes that have it open or mapped, and
 * processes in a file system on it that is mounted on no directory: unmounted lazily, or
 * with a private mount, as {@linkcode mount} makes them.
 *
 * The device is not opened. Without root, processes and mount namespaces of other users
 * cannot be seen. The search waits for nobody else's file system, takes three seconds at
 * most and lists 1000 holders of a kind at most, whatever others do, and lets the event loop go
 * on meanwhile. Requires `--allow-ffi`.
 *
 * @param device The device. With what {@linkcode list} gave its identity is checked.
 * @returns Who was found, and whether everything could be looked at.
 * @throws {StaleDeviceError} when the device is bound to something else by now
 * @throws {UnexpectedDevice} for a path that leads to no whole loop device
 * @throws {LoopError} when `/proc` or `/sys` cannot be read
 *
 * @example Why a device is busy
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
  // Loaded when it is needed: most programs never do.
  const { findHolders } = await import("./holder_search.ts");
  return await findHolders(minor);
}
