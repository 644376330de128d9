/** Finds the file system of a loop device that any process has mounted on a directory. */
import type { FilePath } from "./arguments.ts";
import { bindingOf, diskSequenceOf } from "./kernel/loop_sysfs.ts";
import { isFree, type Released } from "./attaching/release.ts";
import { untilFree } from "./detach.ts";
import { inspect } from "./devices.ts";
import { LoopError, quote } from "./errors.ts";
import type { Holder } from "./holder.ts";
import { MountedFileSystem } from "./mounted.ts";
import { type MountLine, ownMounts } from "./kernel/mounts.ts";
import { numbersOf, PublicMount, Target } from "./mounting/public_mount.ts";
import { loopPlaceOf } from "./mounting/source.ts";
import { EINVAL } from "./sys/errno.ts";
import { AT_FDCWD, cString } from "./sys/libc.ts";
import { majorMinor, statAt } from "./sys/stat.ts";
import { Slices, type WaitOptions } from "./waiting.ts";

/** A file system mounted on a directory. */
export interface MountedOn {
  readonly mounted: MountedFileSystem;
  /** The device to wait for, if its last mount detaches it. */
  readonly device: Released | undefined;
}

/** Returns the file system that is mounted on a directory. */
export async function mountedOn(directory: FilePath): Promise<MountedOn> {
  using target = new Target(directory, "unmount");
  const { identity, number } = numbersOf(target.fd, directory.text);
  const known = identity.isRoot ? await findMount(number) : undefined;
  if (known === undefined) throw refusal(directory, "it is not a mount point");
  const { type, source, options, device } = known;
  // Only a Btrfs has a number of its own; any user can name the source of a FUSE.
  const rdev = type === "btrfs" && majorMinor(device)[0] === 0
    ? rdevAt(source)
    : device;
  const place = rdev === undefined ? undefined : loopPlaceOf(rdev);
  if (rdev === undefined || place === undefined) {
    throw refusal(
      directory,
      `${
        quote(source)
      } is mounted there, which is not a loop device: umount unmounts it`,
    );
  }
  const { minor, partition = `loop${minor}` } = place;
  return {
    mounted: new MountedFileSystem(
      new PublicMount(target.path, { identity, number, source }),
      {
        source: {
          path: `/dev/${partition}`,
          minor,
          rdev,
          binding: bindingOf(minor),
        },
        type,
        readOnly: options.includes("ro"),
        path: directory.text,
      },
    ),
    device: toBeFreed(minor),
  };
}

function refusal({ text }: FilePath, hint: string): LoopError {
  return new LoopError(`Cannot unmount ${quote(text)}`, {
    errno: EINVAL,
    operation: "umount2",
    path: text,
    hint,
  });
}

/** Reads the properties of a mount from `mountinfo`. */
async function findMount(
  number: number,
): Promise<
  Pick<MountLine, "type" | "source" | "options" | "device"> | undefined
> {
  const slices = new Slices();
  for (const mount of ownMounts()) {
    if (slices.isTired) await slices.breathe();
    if (mount.id !== number) continue;
    const { type, source, options, device } = mount;
    return { type, source, options, device };
  }
  return undefined;
}

/** Returns the device number of a node. A mounted Btrfs reports a number of its own instead. */
function rdevAt(path: string): number | undefined {
  const stat = statAt(AT_FDCWD, cString(path));
  return typeof stat === "number" ? undefined : stat.rdev;
}

/** Returns the binding of a device that the kernel detaches at the last close. */
function toBeFreed(minor: number): Released | undefined {
  const device = inspect(minor);
  if (device === undefined || !device.autoclear) return undefined;
  return {
    minor,
    path: device.path,
    binding: bindingOf(minor),
    diskSequence: diskSequenceOf(minor),
    failure: undefined,
    partscan: device.partscan,
  };
}

/**
 * Waits until a device is free, unless it is still mounted: another file system on it, or
 * the same one in another mount namespace.
 *
 * @returns The mounts that keep it attached.
 */
export async function untilDetached(
  device: Released,
  waiting: WaitOptions,
): Promise<Holder[]> {
  if (isFree(device)) return [];
  const { findHolders } = await import("./kernel/holder_search.ts");
  const { signal } = waiting;
  const { holders } = await findHolders(device.minor, { signal });
  signal?.throwIfAborted();
  const mounts = holders.filter(({ kind }) => kind === "mount");
  if (mounts.length > 0 && !isFree(device)) return mounts;
  await untilFree(device, waiting);
  return [];
}
