/** Partitions that follow when the file or the size of a device has changed. */
import { LoopError } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { hasPartitions, hasSysfs } from "../kernel/loop_sysfs.ts";
import { partitions } from "../partitions/partitions.ts";
import { warn } from "./output.ts";

/** Whether a device shows partitions, or is to show those that its file gets. */
export function showsPartitions(loop: Loop): boolean {
  return (hasSysfs() && hasPartitions(loop.minor)) ||
    loop.getStatus().partscan;
}

/** Shows the partitions of a device that was changed. That they cannot be shown does not undo the change. */
export async function follow(loop: Loop): Promise<void> {
  try {
    await partitions(loop.minor);
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    warn(`its partitions are as they were: ${error.message}`);
  }
}
