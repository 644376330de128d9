/** Opening devices also where `/dev` has no nodes: in a container. */
import { locate } from "../device_ref.ts";
import type { FilePath } from "../arguments.ts";
import { LoopError } from "../errors.ts";
import {
  type InternalOptions,
  Loop,
  type LoopOptions,
  NODE,
  openNode,
} from "./loop.ts";
import {
  CONTROL_DEVICE,
  type InternalControlOptions,
  LoopControl,
} from "./loop_control.ts";
import { deviceNumberOf, hasSysfs } from "./loop_sysfs.ts";
import { makePrivateDirectory, PARENTS } from "./private_directory.ts";
import { EACCES, ENOENT } from "../sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  mknodAt,
  removeDirectoryAt,
  S_IFBLK,
  S_IFCHR,
  unlinkAt,
} from "../sys/libc.ts";

/** Opens a device by number; when there is no node of it in `/dev`, through one of our own that is gone afterwards. */
export function openLoop(minor: number, options: LoopOptions): Loop {
  return openAnyNode(minor, options, (options) => new Loop(minor, options));
}

/** The same for a name or path too. By a name or path in `/dev` the device is meant, not the node, which may be missing. */
export function openDevice(
  device: string | number,
  options: LoopOptions,
): Loop {
  if (typeof device === "number") return openLoop(device, options);
  const place = locate(device);
  return "minor" in place
    ? openLoop(place.minor, options)
    : openNode(place.node, options);
}

/** The same with a constructor of the caller's. */
export function openAnyNode<T>(
  minor: number,
  options: LoopOptions,
  open: (options: InternalOptions) => T,
): T {
  try {
    return open(options);
  } catch (error) {
    // Without sysfs nobody tells whether the device exists, and a node creates it.
    const number = isMissing(error) && hasSysfs()
      ? deviceNumberOf(minor)
      : undefined;
    if (number === undefined) throw error;
    return throughOwnNode(
      { name: `loop${minor}`, mode: S_IFBLK, number },
      (place) => open({ ...options, ...place }),
      error,
    );
  }
}

/** Opens `/dev/loop-control`; when it is missing, through a node of our own that is gone afterwards. */
export function openControl(): LoopControl {
  try {
    return new LoopControl();
  } catch (error) {
    if (!isMissing(error)) throw error;
    return throughOwnNode(
      { name: "loop-control", mode: S_IFCHR, number: CONTROL_DEVICE },
      (place: InternalControlOptions) => new LoopControl(place),
      error,
    );
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof LoopError && error.errno === ENOENT &&
    error.operation === "open";
}

/** Which node is opened: a name in a directory of ours. What is told is the name in `/dev`. */
interface OwnNode {
  readonly dirFd: number;
  readonly [NODE]: FilePath;
}

/** Opens a node in a directory that exists only for that. When it cannot, `missing` is thrown, which says that there is none in `/dev`. */
function throughOwnNode<T>(
  { name, mode, number }: { name: string; mode: number; number: number },
  open: (place: OwnNode) => T,
  missing: unknown,
): T {
  for (const parent of PARENTS) {
    const directory = makePrivateDirectory(parent, ".loopdev-");
    if (directory === undefined) continue;
    using held = directory.descriptor;
    const { fd } = held;
    const bytes = cString(name);
    try {
      if (mknodAt(fd, bytes, mode | 0o600, number) < 0) continue;
      return open({ dirFd: fd, [NODE]: { text: `/dev/${name}`, bytes } });
    } catch (error) {
      if (!isNodev(error)) throw error;
    } finally {
      unlinkAt(fd, bytes);
      removeDirectoryAt(AT_FDCWD, cString(directory.path));
    }
  }
  throw missing;
}

/** Whether a node cannot be opened where it is: on a mount with the option nodev. */
function isNodev(error: unknown): boolean {
  return error instanceof LoopError && error.errno === EACCES;
}
