/** Binding a file to a device: in one step, verified, or nothing stays attached. */
import { bind, type Loop } from "../kernel/loop.ts";
import { LO_FLAGS_PARTSCAN, type LoopInfo64 } from "../sys/loop_uapi.ts";
import { rollBack } from "./release.ts";
import { removeStalePartitions } from "./stale_partitions.ts";
import { verify, type Wanted } from "./verification.ts";

/** Binds the file to an open device, which is closed when that fails: it may be somebody else's by then. */
export function bindOrClose<L extends Loop>(
  loop: L,
  { config, backing }: Wanted,
): L {
  try {
    removeStalePartitions(loop);
    // Scanning for partitions is the second step: in one, it races with udev, and
    // partitions that have appeared vanish again.
    config.info.flags &= ~LO_FLAGS_PARTSCAN;
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
  finish?: (info: LoopInfo64) => Promise<void>,
): Promise<void> {
  try {
    if (wanted.options.partscan) loop.setStatus({ partscan: true });
    const info = verify(loop, wanted);
    await finish?.(info);
  } catch (error) {
    await rollBack(loop);
    throw error;
  }
}
