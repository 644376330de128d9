/** Device nodes that are examined, and then opened: that very node, and no other. */
import {
  isBlockDevice,
  makedev,
  S_IFCHR,
  S_IFMT,
  type Stat,
  statOf,
} from "../sys/stat.ts";
import type { FilePath } from "../arguments.ts";
import { quote, UnexpectedDevice, unwrap } from "../errors.ts";
import { EACCES, ENODEV, ENOENT } from "../sys/errno.ts";
import {
  AT_FDCWD,
  close,
  cString,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  openAt,
} from "../sys/libc.ts";
import { readLink } from "../sys/sysfs.ts";
import { fileType, unwrapFound, unwrapStat } from "./file_descriptor.ts";
import { FoundFile, pathOf } from "./found_file.ts";
import { rdevOf } from "./loop_sysfs.ts";

/**
 * A node that is open. Who takes it over closes its descriptor. Internal callers give it
 * to the constructors of `Loop` and `LoopControl` in place of their options.
 */
export class OpenedNode {
  /** It has no meaning here; options have it. */
  readonly dirFd: undefined;
  /** The loop number; -1 for loop-control. */
  readonly minor: number;
  /** For messages: not always that of the node. */
  readonly path: string;
  readonly fd: number;
  /** As in `st_rdev`. */
  readonly rdev: number;
  readonly readOnly: boolean;
  /** It was made for the moment of opening, since `/dev` has none. */
  readonly isTemporary: boolean;

  constructor(
    { minor, path, fd, rdev, readOnly = false, isTemporary = false }: {
      minor: number;
      path: string;
      fd: number;
      rdev: number;
      readOnly?: boolean;
      isTemporary?: boolean;
    },
  ) {
    this.minor = minor;
    this.path = path;
    this.fd = fd;
    this.rdev = rdev;
    this.readOnly = readOnly;
    this.isTemporary = isTemporary;
  }
}

/** Where a node is. */
export interface NodePlace {
  /** The directory that holds it, or `AT_FDCWD`. */
  readonly dirFd: number;
  /** The path that messages have, and the one that is opened, relative to the directory. */
  readonly node: FilePath;
  readonly isTemporary?: boolean;
  /**
   * The device number of the device when it was last seen, from callers who ask
   * `isVacant` once it is open. Without it sysfs is read before.
   */
  readonly recalledRdev?: number | undefined;
}

/** The place of a name in `/dev`, or in the directory of a descriptor. */
export function placeIn(dirFd: number, name: string): NodePlace {
  if (dirFd === AT_FDCWD) {
    const text = `/dev/${name}`;
    return { dirFd, node: { text, bytes: cString(text) } };
  }
  const directory = readLink(pathOf(dirFd));
  const parent = typeof directory === "string" ? directory : pathOf(dirFd);
  return { dirFd, node: { text: `${parent}/${name}`, bytes: cString(name) } };
}

/** Opens the node of a loop device. */
export function openLoopNode(
  minor: number,
  place: NodePlace,
  readOnly: boolean,
): OpenedNode {
  const path = place.node.text;
  const found = FoundFile.find(place.dirFd, place.node.bytes);
  using node = unwrapFound(found, () => ({
    action: `Cannot open ${quote(path)}`,
    operation: "open",
    path,
    hint: { [ENOENT]: whyMissing(minor) },
  }));
  return openFoundNode(minor, node, { ...place, readOnly });
}

/** Opens a node that was found already. */
export function openFoundNode(
  minor: number,
  found: FoundFile,
  { node: { text: path }, readOnly, isTemporary = false, recalledRdev }:
    & Omit<NodePlace, "dirFd">
    & { readOnly: boolean },
): OpenedNode {
  const { rdev } = found.stat;
  if (!isBlockDevice(found.stat) || rdev !== recalledRdev) {
    expectLoopDevice(minor, path, found.stat);
  }
  const fd = unwrap(found.open(readOnly ? O_RDONLY : O_RDWR), () => ({
    action: `Cannot open ${quote(path)}`,
    operation: "open",
    path,
    hint: { [EACCES]: "root and the group of the node may open it" },
  }));
  return new OpenedNode({ minor, path, fd, rdev, readOnly, isTemporary });
}

function whyMissing(minor: number): string {
  const name = `loop${minor}`;
  return rdevOf(minor) === undefined
    ? `there is no ${name}; LoopControl.add(${minor}) adds it`
    : `the kernel has ${name}, but there is no node for it here`;
}

/** Throws unless a node is that of a loop device. */
function expectLoopDevice(
  minor: number,
  path: string,
  { mode, rdev }: Pick<Stat, "mode" | "rdev">,
): void {
  const expected = rdevOf(minor);
  const isBlock = isBlockDevice({ mode });
  if (isBlock && rdev === expected) return;
  let hint = `it is ${fileType(mode)}`;
  if (isBlock) {
    hint = expected === undefined
      ? `the kernel has no loop${minor}`
      : `it is a node of another device`;
  }
  throw new UnexpectedDevice(minor, rdev, mode, { path, hint });
}

/** Throws unless an open device is the loop device of that number. */
export function expectOpenLoopDevice(
  { fd, minor, path }: { fd: number; minor: number; path: string },
): void {
  const action = `Cannot examine ${quote(path)}`;
  expectLoopDevice(minor, path, unwrapStat(statOf(fd), action, path));
}

/** `LOOP_CTRL_MINOR` in linux/miscdevice.h, under `MISC_MAJOR` in linux/major.h. */
export const CONTROL_DEVICE: number = makedev(10, 237);

/** Opens the node of loop-control. */
export function openControlNode({ dirFd, node }: NodePlace): OpenedNode {
  const path = node.text;
  if (dirFd === AT_FDCWD) {
    // In /dev only root can have put something else in its place, which need not be
    // examined before it is opened.
    const fd = openAt(dirFd, node.bytes, O_RDWR | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0) return examineControl(fd, path);
  }
  const failure = {
    action: `Cannot open ${quote(path)}`,
    operation: "open",
    path,
    hint: {
      [ENOENT]: "load the driver with modprobe loop",
      [ENODEV]: "this kernel has no loop driver",
      [EACCES]: "root and the group of the node may open it",
    },
  };
  using found = unwrapFound(FoundFile.find(dirFd, node.bytes), () => failure);
  expectControl(path, found.stat);
  const fd = unwrap(found.open(O_RDWR), () => failure);
  return new OpenedNode({ minor: -1, path, fd, rdev: CONTROL_DEVICE });
}

function examineControl(fd: number, path: string): OpenedNode {
  try {
    const stat = statOf(fd);
    expectControl(
      path,
      unwrapStat(stat, `Cannot examine ${quote(path)}`, path),
    );
    return new OpenedNode({ minor: -1, path, fd, rdev: CONTROL_DEVICE });
  } catch (error) {
    close(fd);
    throw error;
  }
}

function expectControl(path: string, { mode, rdev }: Stat): void {
  if ((mode & S_IFMT) === S_IFCHR && rdev === CONTROL_DEVICE) return;
  throw new UnexpectedDevice(-1, rdev, mode, {
    path,
    wanted: "loop-control",
    hint: `it is ${fileType(mode)}, not character device 10:237`,
  });
}
