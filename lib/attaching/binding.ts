/** Binding a file to a device: in one step, verified, or nothing stays attached. */
import type { Wanted } from "./device_size.ts";
import { removePartitions } from "../kernel/remove_partitions.ts";
import { bind, type Loop, reopen } from "../kernel/loop.ts";
import { hasPartitions, isBound } from "../kernel/loop_sysfs.ts";
import { expectOpenLoopDevice } from "../kernel/opened_node.ts";
import { mayUdevRun } from "../kernel/udev.ts";
import { isVacant } from "../kernel/vacancy.ts";
import { O_EXCL, O_RDONLY } from "../sys/libc.ts";
import { LO_FLAGS_PARTSCAN } from "../sys/loop_uapi.ts";
import { BRIEF_USE } from "../waiting.ts";
import { rollBack } from "./release.ts";
import { retryWhileHeld } from "./retry_while_held.ts";
import { type Verified, verify } from "./verification.ts";

/** Binds the file to an open device, which is closed when that fails: it may be somebody else's by then. */
export function bindOrClose<L extends Loop>(
  loop: L,
  { config, backing }: Wanted,
): L {
  try {
    removeStalePartitions(loop);
    // Scanning for partitions is a second step beside udev, which takes 16 ms: in one,
    // the two race, and partitions that have appeared vanish again.
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
 * Makes a device that was just bound what was asked for, and verifies that. When that
 * fails, or what is to be done then, the device is detached: it is certainly ours, since
 * our descriptor has been open from before it was bound.
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

/** Has the kernel look for partitions, unless it was told to when the file was bound. */
async function turnOnPartscan(loop: Loop): Promise<void> {
  await retryWhileHeld(() => loop.setStatus({ partscan: true }), {
    timeout: BRIEF_USE,
    signal: undefined,
  });
}

/**
 * Removes the partitions that the last user of a device left behind. The kernel drops
 * partitions at a detach only where it was told to scan for them; others stay, and would
 * show parts of the next file, or be in the way of its partitions. The device is held
 * exclusively while they are removed, so that nobody can attach a file to it.
 *
 * @throws {LoopError} `EBUSY` when somebody uses the device or one of them
 */
function removeStalePartitions(loop: Loop): void {
  if (isVacant(loop.minor)) return;
  expectOpenLoopDevice(loop); // it was opened as what it was when it was last seen
  if (!hasPartitions(loop.minor)) return;
  // Held for a moment, partitions that somebody uses could not be formatted or mounted.
  if (isBound(loop.minor)) return;
  using exclusive = reopen(
    loop,
    O_RDONLY | O_EXCL,
    "remove old partitions of",
  );
  if (isBound(loop.minor)) return; // somebody else was faster
  const { minor, path } = loop;
  removePartitions(
    { fd: exclusive.fd, minor, path },
    "remove the partitions that an earlier user left on",
  );
}
