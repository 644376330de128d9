/** Examines device nodes, and then opens exactly the node that was examined. */
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
 * An open node. The receiver closes its descriptor. Internal callers pass it to the
 * constructors of `Loop` and `LoopControl` in place of their options.
 */
export class OpenedNode {
  /** Unused; present because it is an option of the constructors. */
  readonly dirFd: undefined;
  /** The loop number; -1 for loop-control. */
  readonly minor: number;
  /** Path for messages, which is not always that of the node. */
  readonly path: string;
  readonly fd: number;
  /** The device number, as in `st_rdev`. */
  readonly rdev: number;
  readonly readOnly: boolean;
  /** `true` if the node was created only for opening, because `/dev` has none. */
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

/** Location of a node. */
export interface NodePlace {
  /** The directory that holds it, or `AT_FDCWD`. */
  readonly dirFd: number;
  /** Path for messages, and for opening relative to the directory. */
  readonly node: FilePath;
  readonly isTemporary?: boolean;
  /**
   * The device number when the device was last seen, for callers that check `isVacant`
   * once it is open. Without it, sysfs is read first.
   */
  readonly recalledRdev?: number | undefined;
}

/** Returns the location of a name in `/dev`, or in the directory of a descriptor. */
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

/** Opens a node that was already found. */
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
    hint: { [EACCES]: "only root and the group of the node may open it" },
  }));
  return new OpenedNode({ minor, path, fd, rdev, readOnly, isTemporary });
}

function whyMissing(minor: number): string {
  const name = `loop${minor}`;
  return rdevOf(minor) === undefined
    ? `there is no ${name}; LoopControl.add(${minor}) adds it`
    : `the kernel has ${name}, but it has no node here`;
}

/** Throws if a node is not that of the expected loop device. */
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
      : `it is the node of another device`;
  }
  throw new UnexpectedDevice(minor, rdev, mode, { path, hint });
}

/** Throws if an open device is not the loop device with that number. */
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
    // In /dev, only root can have replaced the node, so it need not be examined before
    // it is opened.
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
      [EACCES]: "only root and the group of the node may open it",
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
