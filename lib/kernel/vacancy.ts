/** Recognizes unused devices by a single look at their directory in sysfs. */
import { statAt, statOf } from "../sys/stat.ts";
import { AT_FDCWD, close, transientCString } from "../sys/libc.ts";
import { directoriesIn, openDirectoryAt } from "../sys/sysfs.ts";
import { BLOCK, rdevOf } from "./loop_sysfs.ts";

/** Facts that do not change while a device exists. */
interface Device {
  /**
   * Inode of its directory. A device that was removed and added again has another one.
   */
  readonly inode: bigint;
  /** The device number, as in `st_rdev`. */
  readonly rdev: number;
  /**
   * Link count of the directory without a file and partitions, because each
   * subdirectory adds one.
   */
  readonly links: number;
}

const devices = new Map<number, Device>();

/**
 * Returns the device number that a device had when it was last seen. `isVacant` checks
 * that it is still that device.
 */
export function recallRdev(minor: number): number | undefined {
  return devices.get(minor)?.rdev;
}

/**
 * Returns `true` if a device has no file and no partitions, or `false` if it has or
 * that cannot be determined this way.
 */
export function isVacant(minor: number): boolean {
  const path = `${BLOCK}/loop${minor}`;
  const device = devices.get(minor) ?? study(minor, path);
  if (device === undefined) return false;
  const stat = statAt(AT_FDCWD, transientCString(path));
  if (
    typeof stat !== "number" && stat.inode === device.inode &&
    stat.links === device.links
  ) return true;
  devices.delete(minor);
  return false;
}

/** Determines how to recognize a device. */
function study(minor: number, path: string): Device | undefined {
  const rdev = rdevOf(minor);
  const directory = openDirectoryAt(path);
  if (directory < 0) return undefined;
  try {
    const stat = statOf(directory);
    const names = directoriesIn(directory);
    if (
      rdev === undefined || typeof stat === "number" ||
      typeof names === "number"
    ) return undefined;
    // Not every file system counts directories as links.
    if (stat.links !== names.length + 2) return undefined;
    const lasting = names.filter((name) =>
      name !== "loop" && !name.startsWith(`loop${minor}p`)
    );
    const device = { inode: stat.inode, rdev, links: lasting.length + 2 };
    devices.set(minor, device);
    return device;
  } finally {
    close(directory);
  }
}
