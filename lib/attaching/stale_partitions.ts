/**
 * Partitions that the last owner of a device left behind. The kernel drops partitions
 * at a detach only where it was told to scan for them; others stay, and would show
 * parts of the next file, or be in the way of its partitions.
 */
import { type Loop, reopen } from "../kernel/loop.ts";
import { removePartitions } from "../kernel/kernel_partitions.ts";
import { hasPartitions, isBound } from "../kernel/loop_sysfs.ts";
import { O_EXCL, O_RDONLY } from "../sys/libc.ts";

/**
 * Removes them from a device to which nothing is attached. It is held exclusively
 * meanwhile: nobody can attach to it, so they are nobody's.
 *
 * @throws {LoopError} `EBUSY` when somebody uses the device or one of them
 */
export function removeStalePartitions(loop: Loop): void {
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
