/** Recognizing devices that nobody uses by one look at their directory in sysfs. */
import { statAt, statOf } from "../sys/stat.ts";
import { AT_FDCWD, close, transientCString } from "../sys/libc.ts";
import { directoriesIn, openDirectoryAt } from "../sys/sysfs.ts";
import { BLOCK, rdevOf } from "./loop_sysfs.ts";

/** What stays the same for as long as a device exists. */
interface Device {
  /** Of its directory. A device that was removed and added again has another. */
  readonly inode: bigint;
  /** As in `st_rdev`. */
  readonly rdev: number;
  /** Links of the directory without a file and partitions: each directory in it is one. */
  readonly links: number;
}

const devices = new Map<number, Device>();

/** The device number that a device had when it was last seen. `isVacant` tells whether it is that device. */
export function recallRdev(minor: number): number | undefined {
  return devices.get(minor)?.rdev;
}

/** Whether no file is attached to a device and it has no partitions. `false` also when that cannot be told so easily. */
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

/** Finds out how to recognize a device. */
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
