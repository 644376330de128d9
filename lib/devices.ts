/** Which loop devices are attached, and to what. */
import { statAt } from "./sys/stat.ts";
import {
  checkBoolean,
  checkBytes,
  checkOptions,
  checkPath,
  type FilePath,
} from "./arguments.ts";
import { type DeviceRef, minorOf, recycled, sequenceIn } from "./device_ref.ts";
import { quote } from "./errors.ts";
import {
  type DeviceRecord,
  devicesBackedBy,
  type LoopDevice,
  readDevice,
  readDevices,
  referenceOf,
} from "./kernel/attached_devices.ts";
import { FileDescriptor, unwrapStat } from "./kernel/file_descriptor.ts";
import { pathOf } from "./kernel/found_file.ts";
import { Lookup } from "./kernel/lookup.ts";
import { existingMinors } from "./kernel/loop_sysfs.ts";
import { ENOENT, ENOTDIR } from "./sys/errno.ts";
import { AT_FDCWD, O_DIRECTORY, O_PATH, openAt } from "./sys/libc.ts";
import { readLinkBytes } from "./sys/sysfs.ts";

export type { LoopDevice } from "./kernel/attached_devices.ts";

/** Which devices {@linkcode list} lists. Without a filter it lists all. */
export interface ListFilter {
  /**
   * Only those whose backing file lies in this directory, or below it. The path counts:
   * the directory need not exist any more.
   */
  under?: string | URL | undefined;
  /** Only those whose backing file was deleted; with `false` only those whose file was not. */
  deleted?: boolean | undefined;
  /**
   * Only those that were attached with this reference, which the rows have then. Only
   * the devices themselves know it, so they are opened, for reading. A device whose file
   * is on a server that may not answer is left out.
   */
  reference?: string | undefined;
}

/** What {@linkcode find} looks for beside the file. */
export interface FindOptions {
  /** Only devices that begin there, in bytes. */
  offset?: number | bigint | undefined;
}

/**
 * Lists the attached loop devices, in the order of their numbers.
 *
 * They are read from sysfs. No device is opened, so no right is needed and nobody is
 * disturbed: an open descriptor would turn somebody's detach into one that waits for
 * us. (Only when a path ends in ` (deleted)` and a file of that name exists, one is
 * opened to find out, and with a `reference`.) A device that is detached meanwhile is
 * left out.
 *
 * Requires `--allow-ffi`.
 *
 * @param filter Which devices to list.
 * @returns One row a device.
 * @throws {LoopError} when sysfs is not there or cannot be read; `EACCES` when a device
 * may not be opened for its reference
 * @throws {TypeError} for a filter that does not exist or has the wrong type
 *
 * @example The backing files
 * ```ts
 * import { list } from "@loopdev/loopdev";
 *
 * for (const device of list()) {
 *   console.log(device.path, device.backingFile);
 * }
 * ```
 *
 * @example What a build has left behind
 * ```ts
 * import { list } from "@loopdev/loopdev";
 *
 * console.log(list({ under: "/tmp/build", deleted: true }));
 * ```
 */
export function list(filter: ListFilter = {}): LoopDevice[] {
  return filter?.reference === undefined
    ? select(filter).records.map(({ device }) => device)
    : listWithReferences(filter);
}

/**
 * Like {@linkcode list}, with the reference of each device. Every device is opened, for
 * reading; one whose file is on a server that may not answer has no reference.
 */
export function listWithReferences(filter: ListFilter): LoopDevice[] {
  const { records, reference } = select(filter);
  const devices = withReferences(records);
  return reference === undefined
    ? devices
    : devices.filter((device) => device.reference === reference);
}

/** The devices that a filter leaves, before their references are read. */
function select(
  filter: ListFilter,
): { records: DeviceRecord[]; reference: string | undefined } {
  checkOptions(filter, ["under", "deleted", "reference"]);
  const { reference } = filter;
  if (reference !== undefined && typeof reference !== "string") {
    throw new TypeError(`Cannot use the reference: it must be a string`);
  }
  const deleted = checkBoolean(filter.deleted, "deleted");
  const directory = filter.under === undefined
    ? undefined
    : canonicalDirectory(checkPath(filter.under));
  const records = readDevices()
    .filter(({ device }) => deleted === undefined || device.deleted === deleted)
    .filter(({ backingPath }) =>
      directory === undefined || beginsWith(backingPath, directory)
    );
  return { records, reference };
}

function withReferences(records: readonly DeviceRecord[]): LoopDevice[] {
  const lookup = new Lookup();
  return records.map((record) => {
    const reference = referenceOf(record, lookup);
    return { ...record.device, ...(reference !== undefined && { reference }) };
  });
}

const SLASH = "/".charCodeAt(0);

/** The bytes with which paths in a directory begin, as the kernel tells them: symbolic links are followed. */
function canonicalDirectory({ text, bytes }: FilePath): Uint8Array {
  const fd = openAt(AT_FDCWD, bytes, O_PATH | O_DIRECTORY);
  if (fd < 0) {
    // It may have been deleted, with the files in it.
    if (fd === -ENOENT || fd === -ENOTDIR) return asPrefix(absolute(bytes));
    unwrapStat(fd, `Cannot examine ${quote(text)}`, text, "open");
  }
  using directory = new FileDescriptor(fd);
  const path = readLinkBytes(pathOf(directory.fd));
  return asPrefix(typeof path === "number" ? absolute(bytes) : path.slice());
}

/** The path, which ends in a NUL, from the root directory on. */
function absolute(bytes: Uint8Array): Uint8Array {
  const path = bytes.subarray(0, bytes.length - 1);
  if (path[0] === SLASH) return path;
  const parent = readLinkBytes("/proc/self/cwd");
  if (typeof parent === "number") return path;
  return new Uint8Array([...parent, SLASH, ...path]);
}

function asPrefix(path: Uint8Array): Uint8Array {
  let end = path.length;
  while (end > 0 && path[end - 1] === SLASH) end--;
  return new Uint8Array([...path.subarray(0, end), SLASH]);
}

function beginsWith(path: Uint8Array, prefix: Uint8Array): boolean {
  return prefix.every((byte, index) => path[index] === byte);
}

/**
 * Shows one device, as {@linkcode list} has it, without a look at the others.
 *
 * Requires `--allow-ffi`, and no rights.
 *
 * @param device The device. With what {@linkcode list} gave its identity is checked.
 * @returns `undefined` when no file is attached to it, or there is no such device.
 * @throws {StaleDeviceError} when the device is bound to something else by now
 * @throws {UnexpectedDevice} for a path that leads to something else
 * @throws {LoopError} when a path leads nowhere, or sysfs cannot be read
 *
 * @example The backing file of a device
 * ```ts
 * import { attach, inspect, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using memory = openMemory(1 << 20);
 * await using device = await attach(memory);
 * assertEquals(inspect(device)?.size, 1 << 20);
 * ```
 */
export function inspect(device: DeviceRef): LoopDevice | undefined {
  const expected = sequenceIn(device);
  const record = readDevice(minorOf(device));
  const actual = record?.device.diskSequence || undefined;
  if (expected !== undefined && actual !== undefined && actual !== expected) {
    throw recycled("examine", record!.device.path);
  }
  if (record === undefined) existingMinors(); // which says so where there is no sysfs
  return record?.device;
}

/**
 * Finds the devices that a file is attached to, by device and inode and not by name: hard
 * links, symbolic links and bind mounts are seen through.
 *
 * Of each device the path of its backing file is looked at; it is opened, to make sure,
 * only where that leads to the file, or nowhere from here. So a device whose path leads
 * to another file from here, because something is mounted over it or in another mount
 * namespace, is not found. Nor is one whose file is on a file system that may not answer
 * (FUSE, NFS), unless `file` is on the same: nobody waits for the servers of others. A file
 * that is seen through an overlayfs is another one than the same file in its upper
 * directory: the kernel does not tell. Requires `--allow-ffi`.
 *
 * @param file The file. Relative to the working directory.
 * @param options What else to look for.
 * @returns The devices in the order of their numbers, as {@linkcode list} has them.
 * @throws {LoopError} `ENOENT`, `EACCES` … when the file cannot be examined
 * @throws {RangeError} for a bad offset
 *
 * @example Where a file is attached
 * ```ts
 * import { attach, find } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * await Deno.truncate(path, 4096);
 * {
 *   await using device = await attach(path);
 *   assertEquals(find(path)[0]?.path, device.path);
 * }
 * assertEquals(find(path), []);
 * await Deno.remove(path);
 * ```
 */
export function find(
  file: string | URL,
  options: FindOptions = {},
): LoopDevice[] {
  checkOptions(options, ["offset"]);
  const offset = options.offset === undefined
    ? undefined
    : checkBytes(options.offset, "offset");
  const path = checkPath(file);
  const stat = unwrapStat(
    statAt(AT_FDCWD, path.bytes),
    `Cannot examine ${quote(path.text)}`,
    path.text,
  );
  return devicesBackedBy(stat)
    .filter((found) => offset === undefined || found.offset === offset)
    .map(({ device }) => device);
}
