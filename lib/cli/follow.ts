/** Updates the partitions of a device whose file or size has changed. */
import { LoopError } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { hasPartitions, hasSysfs } from "../kernel/loop_sysfs.ts";
import { partitions } from "../partitions/partitions.ts";
import { warn } from "./output.ts";

/** Returns `true` if a device shows partitions, or would show those of a new file. */
export function showsPartitions(loop: Loop): boolean {
  return (hasSysfs() && hasPartitions(loop.minor)) ||
    loop.getStatus().partscan;
}

/** Shows the partitions of a changed device. A failure is a warning, because the change is not undone. */
export async function follow(loop: Loop): Promise<void> {
  try {
    await partitions(loop.minor);
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    warn(`its partitions were not updated: ${error.message}`);
  }
}
