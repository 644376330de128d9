/**
 * Binds a file to a device in one step and verifies the result, or leaves nothing
 * attached.
 */
import type { Wanted } from "./device_size.ts";
import { removePartitions } from "../kernel/remove_partitions.ts";
import { bind, type Loop, reopen } from "../kernel/loop.ts";
import { hasPartitions, isBound } from "../kernel/loop_sysfs.ts";
import { isVacant } from "../kernel/vacancy.ts";
import { expectOpenLoopDevice } from "../kernel/opened_node.ts";
import { AT_FDCWD, cString, O_EXCL, O_RDONLY } from "../sys/libc.ts";
import { LO_FLAGS_PARTSCAN } from "../sys/loop_uapi.ts";
import { retryWhileHeld, rollBack } from "./release.ts";
import { type Verified, verify } from "./verification.ts";
import { statAt } from "../sys/stat.ts";
import { readLink } from "../sys/sysfs.ts";

/**
 * Binds the file to an open device. Closes the device if that fails, because another
 * process may have bound it.
 */
export function bindOrClose<L extends Loop>(
  loop: L,
  { config, backing }: Wanted,
): L {
  try {
    removeStalePartitions(loop);
    // Where udev runs, scanning for partitions is a second step, which takes 16 ms. In
    // a single step, the kernel and udev race, and partitions that have appeared can
    // vanish again.
    if ((config.info.flags & LO_FLAGS_PARTSCAN) !== 0 && mayUdevRun()) {
      config.info.flags &= ~LO_FLAGS_PARTSCAN;
    }
    bind(loop, config, backing.name);
    return loop;
  } catch (error) {
    loop.close();
    throw error;
  }
}

/**
 * Completes the configuration of a device that was just bound, and verifies it. If this
 * or the callback fails, the device is detached. It is certainly ours: our descriptor
 * has been open since before it was bound.
 */
export async function completeBinding(
  loop: Loop,
  wanted: Wanted,
  finish: (verified: Verified) => Promise<void> | undefined = () => undefined,
): Promise<void> {
  try {
    if (wanted.options.partscan) await turnOnPartscan(loop);
    const finished = finish(verify(loop, wanted));
    if (finished !== undefined) await finished;
  } catch (error) {
    await rollBack(loop);
    throw error;
  }
}

/** Makes the kernel scan for partitions, unless the file was bound with that flag. */
async function turnOnPartscan(loop: Loop): Promise<void> {
  await retryWhileHeld(() => loop.setStatus({ partscan: true }));
}

/**
 * Removes partitions left over from the previous file of a device. The kernel removes
 * partitions on detaching only if partscan was on; others stay, and would show parts of
 * the next file or collide with its partitions. The device is held with O_EXCL while
 * they are removed, so that no process can attach a file to it.
 *
 * @throws {LoopError} If the device or one of the partitions is in use (`EBUSY`).
 */
function removeStalePartitions(loop: Loop): void {
  if (isVacant(loop.minor)) return;
  expectOpenLoopDevice(loop); // it was opened as the device it was when last seen
  if (!hasPartitions(loop.minor)) return;
  // Even held for a moment, partitions in use could not be formatted or mounted.
  if (isBound(loop.minor)) return;
  using exclusive = reopen(
    loop,
    O_RDONLY | O_EXCL,
    "remove the old partitions of",
  );
  if (isBound(loop.minor)) return; // another process was faster
  const { minor, path } = loop;
  removePartitions(
    { fd: exclusive.fd, minor, path },
    "remove the leftover partitions of",
  );
}

/** Returns `true` if udev runs in this mount namespace. */
export function isUdevRunning(): boolean {
  return typeof statAt(AT_FDCWD, cString("/run/udev/control")) !== "number";
}

/** Name of the initial PID namespace: `PROC_PID_INIT_INO` in `linux/proc_ns.h`. */
const INITIAL_PID_NAMESPACE = "pid:[4026531836]";

/**
 * Returns `true` if udev may open devices. A container cannot see the udev of its host.
 */
export function mayUdevRun(): boolean {
  return readLink("/proc/self/ns/pid") !== INITIAL_PID_NAMESPACE ||
    isUdevRunning();
}
