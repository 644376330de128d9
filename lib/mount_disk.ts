/** Mounts the file system of a device. */
import { checkPath } from "./arguments.ts";
import { openAttached } from "./attaching/open_attached.ts";
import { LoopError, quote, StaleDeviceError } from "./errors.ts";
import { MountedFileSystem } from "./mounted.ts";
import {
  choose,
  type Disk,
  isToBeReadOnly,
  typeOf,
} from "./mounting/choice.ts";
import { mountDetached } from "./mounting/context.ts";
import {
  checkMountOptions,
  type MountOptions,
  type MountRequest,
} from "./mounting/options.ts";
import { PrivateMount } from "./mounting/private_mount.ts";
import { numbersOf, PublicMount, Target } from "./mounting/public_mount.ts";
import type { FileSystem } from "./mounting/recognize.ts";
import { findSource, SourceDevice } from "./mounting/source.ts";
import { EROFS } from "./sys/errno.ts";
import { isMountReadOnly } from "./sys/mount_calls.ts";
import { majorMinor } from "./sys/stat.ts";

/** Mounts the file system of an attached device. */
export async function mountAttached(
  disk: Disk,
  options: MountOptions,
): Promise<MountedFileSystem> {
  return await mountDisk(disk, checkMountOptions(options));
}

/** Mounts the file system on a disk that is open, or on one of its partitions. */
async function mountDisk(
  disk: Disk,
  request: MountRequest,
): Promise<MountedFileSystem> {
  using target = openTarget(request);
  const { path, fileSystem } = await choose(disk, request);
  request.signal?.throwIfAborted();
  using device = SourceDevice.of(checkPath(path), disk.loop.minor);
  return await mountSource(device, request, target, fileSystem);
}

/**
 * Mounts the loop device or partition that a path leads to. Returns `undefined` for any
 * other file. `check` is called before a device is mounted.
 */
export async function mountPath(
  path: string | URL,
  request: MountRequest,
  check: () => void = () => {},
): Promise<MountedFileSystem | undefined> {
  using source = findSource(checkPath(path));
  using target = openTarget(request);
  if (source === undefined) return undefined;
  check();
  const { minor, partition } = source.place;
  if (partition !== undefined) {
    if (request.partition === undefined) {
      return await mountSource(source, request, target);
    }
    throw new TypeError(
      `Cannot use the option partition: ${quote(source.path)} is one already`,
    );
  }
  using loop = openAttached(source.path, "mount");
  if (loop.minor !== minor) {
    throw new StaleDeviceError(
      `Cannot mount ${quote(source.path)}`,
      source.path,
      "it is another device by now",
    );
  }
  return await mountDisk(
    { loop, path: source.path, owner: undefined },
    request,
  );
}

/** Opens the directory to mount on, unless the mount is private. */
function openTarget({ target }: MountRequest): Target | undefined {
  return target === undefined ? undefined : new Target(target);
}

/** Mounts the file system on a device, which is recognized unless it is known. */
async function mountSource(
  device: SourceDevice,
  request: MountRequest,
  target: Target | undefined,
  known?: FileSystem,
): Promise<MountedFileSystem> {
  using source = device.open();
  const { path } = device;
  const wanted = request.type ??
    typeOf(path, known ?? await source.recognize(request.signal));
  const { descriptor, type } = await mountDetached({
    source: path,
    type: wanted,
    readOnly: isToBeReadOnly(request.readOnly, wanted, source.isReadOnly),
    options: request.options,
    attributes: request.attributes,
    signal: request.signal,
  });
  const mount = new PrivateMount(descriptor);
  try {
    request.signal?.throwIfAborted();
    const details = {
      source: device.source,
      type,
      readOnly: examine(mount, device, request, type),
    };
    return target === undefined
      ? new MountedFileSystem(mount, details)
      : attachTo(target, mount, request, details);
  } catch (error) {
    await mount.close();
    throw error;
  }
}

/** Checks that the mount is as requested, and returns whether it is read-only. */
function examine(
  mount: PrivateMount,
  { path, stat }: SourceDevice,
  { readOnly }: MountRequest,
  type: string,
): boolean {
  const action = `Cannot mount ${quote(path)} as ${type}`;
  const { identity } = numbersOf(mount.fd, path);
  // File systems of some types, such as Btrfs, have a device number of their own.
  const isAnonymous = majorMinor(identity.device)[0] === 0;
  if (!isAnonymous && identity.device !== stat.rdev) {
    throw new StaleDeviceError(action, path, "it is another device by now");
  }
  const result = isMountReadOnly(mount.fd);
  const errno = typeof result === "number" ? -result : EROFS;
  if (typeof result === "number" || (result && readOnly === false)) {
    throw new LoopError(action, {
      errno,
      operation: "fstatfs",
      path,
      hint: typeof result === "number"
        ? undefined
        : "it can be mounted read-only",
    });
  }
  return result;
}

function attachTo(
  target: Target,
  mount: PrivateMount,
  request: MountRequest,
  details: {
    source: SourceDevice["source"];
    type: string;
    readOnly: boolean;
  },
): MountedFileSystem {
  const numbers = numbersOf(mount.fd, details.source.path, details.type);
  target.attach(mount.fd, details.source.path);
  // Nothing after this can fail.
  mount.letGo();
  const { text } = request.target!;
  return new MountedFileSystem(new PublicMount(target.path, numbers), {
    ...details,
    path: text.startsWith("/") ? text : target.path.text,
  });
}
