/** Opens devices even if `/dev` has no nodes, as in a container. */
import { S_IFBLK, S_IFCHR } from "../sys/stat.ts";
import { checkMinor } from "../arguments.ts";
import { locate } from "../device_ref.ts";
import { LoopError } from "../errors.ts";
import { EACCES, ENOENT } from "../sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  mkdirAt,
  mknodAt,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  openAt,
  removeDirectoryAt,
  unlinkAt,
} from "../sys/libc.ts";
import { Loop, type LoopOpenOptions, openNode } from "./loop.ts";
import { LoopControl } from "./loop_control.ts";
import { hasSysfs, rdevOf } from "./loop_sysfs.ts";
import {
  CONTROL_DEVICE,
  type NodePlace,
  openControlNode,
  type OpenedNode,
  openLoopNode,
  placeIn,
} from "./opened_node.ts";
import { FileDescriptor } from "./file_descriptor.ts";

/** Opens a device by number. If `/dev` has no node, a temporary one is used. */
export function openLoop(
  minor: number,
  { readOnly = false }: LoopOpenOptions,
): Loop {
  return new Loop(minor, openAnyNode(minor, readOnly));
}

/**
 * Opens a device like {@linkcode openLoop}, but also accepts a name or path. `loop3`
 * and `/dev/loop3` identify the device, so its node may be missing.
 */
export function openDevice(
  device: string | number,
  options: LoopOpenOptions,
): Loop {
  if (typeof device === "number") return openLoop(device, options);
  const place = locate(device);
  return "minor" in place
    ? openLoop(place.minor, options)
    : openNode(place.node, options);
}

/**
 * Opens the node of a device, or a temporary one.
 *
 * @param recalledRdev The device number the device last had, as in
 * {@linkcode NodePlace}.
 */
export function openAnyNode(
  minor: number,
  readOnly: boolean,
  recalledRdev?: number,
): OpenedNode {
  const name = `loop${checkMinor(minor)}`;
  try {
    const place = placeIn(AT_FDCWD, name);
    return openLoopNode(minor, { ...place, recalledRdev }, readOnly);
  } catch (error) {
    // Without sysfs we cannot tell whether the device exists, and opening a node would
    // create it.
    const rdev = isMissing(error) && hasSysfs() ? rdevOf(minor) : undefined;
    if (rdev === undefined) throw error;
    return throughOwnNode(
      { name, mode: S_IFBLK, rdev },
      (place) => openLoopNode(minor, place, readOnly),
      error,
    );
  }
}

/** Opens `/dev/loop-control`. If it is missing, a temporary node is used. */
export function openControl(): LoopControl {
  try {
    return new LoopControl();
  } catch (error) {
    if (!isMissing(error)) throw error;
    const opened = throughOwnNode(
      { name: "loop-control", mode: S_IFCHR, rdev: CONTROL_DEVICE },
      openControlNode,
      error,
    );
    return new LoopControl(opened);
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof LoopError && error.errno === ENOENT &&
    error.operation === "open";
}

/**
 * Opens a node in a temporary directory. If that fails, throws `missing`, which says
 * that `/dev` has no node.
 */
function throughOwnNode(
  { name, mode, rdev }: { name: string; mode: number; rdev: number },
  open: (place: NodePlace) => OpenedNode,
  missing: unknown,
): OpenedNode {
  for (const parent of PARENTS) {
    const directory = makePrivateDirectory(parent, ".loopdev-");
    if (directory === undefined) continue;
    using held = directory.descriptor;
    const { fd } = held;
    const bytes = cString(name);
    try {
      if (mknodAt(fd, bytes, mode | 0o600, rdev) < 0) continue;
      const node = { text: `/dev/${name}`, bytes };
      return open({ dirFd: fd, node, isTemporary: true });
    } catch (error) {
      if (!isNodev(error)) throw error;
    } finally {
      unlinkAt(fd, bytes);
      removeDirectoryAt(AT_FDCWD, cString(directory.path));
    }
  }
  throw missing;
}

/** Returns `true` if the error means that the mount has the option nodev. */
function isNodev(error: unknown): boolean {
  return error instanceof LoopError && error.errno === EACCES;
}

/** Places to try, because some do not allow device nodes. */
export const PARENTS: readonly string[] = ["/run", "/tmp", "/dev", "/dev/shm"];

/** A new directory that only this user can write to, held by its descriptor. */
export interface PrivateDirectory {
  readonly path: string;
  readonly descriptor: FileDescriptor;
}

/**
 * Creates a directory with a random name. The prefix is `loopdev-` for the nodes of a
 * device, or `.loopdev-` for a temporary node. Returns `undefined` if none can be
 * created.
 */
export function makePrivateDirectory(
  parent: string,
  prefix: "loopdev-" | ".loopdev-",
): PrivateDirectory | undefined {
  const path = `${parent}/${prefix}${crypto.randomUUID()}`;
  if (mkdirAt(AT_FDCWD, cString(path), 0o700) < 0) return undefined;
  const fd = openAt(
    AT_FDCWD,
    cString(path),
    O_PATH | O_DIRECTORY | O_NOFOLLOW,
  );
  if (fd >= 0) return { path, descriptor: new FileDescriptor(fd) };
  removeDirectoryAt(AT_FDCWD, cString(path));
  return undefined;
}
