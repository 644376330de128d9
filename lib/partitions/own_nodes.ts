/** Creates nodes of partitions in private directories, for systems where `/dev` gets none. */
import { LoopError, quote } from "../errors.ts";
import { findPrivateDirectory } from "../kernel/left_nodes.ts";
import type { Loop } from "../kernel/loop.ts";
import {
  type KernelPartition,
  rdevOf,
  rdevOfPartition,
} from "../kernel/loop_sysfs.ts";
import { isDevtmpfs, NodeDirectory } from "../kernel/node_directory.ts";
import { ENOENT } from "../sys/errno.ts";
import { AT_FDCWD, cString } from "../sys/libc.ts";
import { statAt } from "../sys/stat.ts";

/** Returns `true` if the kernel creates nodes of new partitions in `/dev`. */
export function doNodesAppear(): boolean {
  const stat = statAt(AT_FDCWD, cString("/dev"));
  return typeof stat !== "number" && isDevtmpfs(stat.device);
}

/**
 * Creates a directory for the nodes of an attachment, which removes them when it is
 * detached.
 *
 * @throws {LoopError} If no node can be created (`ENOENT`).
 */
export function makeOwnNodes(
  { minor, name }: Loop,
  partition: KernelPartition,
): NodeDirectory {
  return makeNodes(name, rdevOf(minor), partition);
}

/** Returns the directory that has nodes of all these partitions, if there is one. */
export function findNodes(
  partitions: readonly KernelPartition[],
): NodeDirectory | undefined {
  return find((names) => partitions.every(({ name }) => names.includes(name)));
}

/**
 * Returns the directory that has the nodes of these partitions, or one for all processes
 * that did not attach the device. They are removed by `detach(device)`.
 *
 * @throws {LoopError} If no node can be created (`ENOENT`).
 */
export function shareNodes(
  { minor, name }: Loop,
  partitions: readonly [KernelPartition, ...KernelPartition[]],
): NodeDirectory {
  const [first] = partitions;
  // A directory with the node of the disk belongs to an attachment.
  return findNodes(partitions) ??
    find((names) =>
      names.some((other) => other.startsWith(`${name}p`)) &&
      !names.includes(name)
    ) ??
    makeNodes(first.name, rdevOfPartition(minor, first), first);
}

function find(
  isIt: (names: readonly string[]) => boolean,
): NodeDirectory | undefined {
  const found = findPrivateDirectory(isIt);
  return found === undefined ? undefined : NodeDirectory.share(found);
}

function makeNodes(
  name: string,
  rdev: number | undefined,
  { name: missing }: KernelPartition,
): NodeDirectory {
  const path = `/dev/${missing}`;
  const failure = (cause: string) =>
    new LoopError(`Cannot open ${quote(path)}`, {
      errno: ENOENT,
      operation: "open",
      path,
      hint: cause,
    });
  if (rdev === undefined) throw failure("it was removed");
  try {
    return NodeDirectory.makePrivate(name, rdev);
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    throw failure(
      `nodes do not appear in /dev here, and none can be created elsewhere: ${error.message}`,
    );
  }
}
