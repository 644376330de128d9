/** Lists attached loop devices and finds those of a file. */
import { statAt, statOf } from "./sys/stat.ts";
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
  type Place,
  placeOf,
  readDevice,
  readDevices,
  referenceOf,
} from "./kernel/attached_devices.ts";
import { FileDescriptor, unwrapStat } from "./kernel/file_descriptor.ts";
import { pathOf } from "./kernel/found_file.ts";
import { Lookup } from "./kernel/lookup.ts";
import { existingMinors } from "./kernel/loop_sysfs.ts";
import { ENOENT, ENOTDIR } from "./sys/errno.ts";
import {
  AT_FDCWD,
  type CString,
  O_DIRECTORY,
  O_PATH,
  openAt,
} from "./sys/libc.ts";
import { readLinkBytes } from "./sys/sysfs.ts";

export type { LoopDevice } from "./kernel/attached_devices.ts";

/** Filter for {@linkcode list}. Without a filter, all devices are listed. */
export interface ListFilter {
  /**
   * Lists only devices whose backing file is in this directory or below it. Paths are
   * compared, so the directory may have been deleted.
   */
  under?: string | URL | undefined;
  /**
   * Lists only devices whose backing file was deleted, or with `false` only those whose
   * file still exists.
   */
  deleted?: boolean | undefined;
  /**
   * Lists only devices attached with this reference, and includes it in each row. Only
   * the device itself can report its reference, so devices are opened for reading. A
   * device is left out if its file is on a server that might not answer.
   */
  reference?: string | undefined;
}

/** Options of {@linkcode find}. */
export interface FindOptions {
  /** Finds only devices that start at this offset in the file, in bytes. */
  offset?: number | bigint | undefined;
}

/**
 * Lists the attached loop devices in numeric order.
 *
 * The data comes from sysfs. No device is opened, so no privileges are needed and
 * nothing is disturbed: an open descriptor would make another process's detach wait for
 * us. There are two exceptions: `reference` opens devices, and so does a path that ends
 * in ` (deleted)` if a file of that very name exists. A device that is detached during
 * the call is left out.
 *
 * Requires `--allow-ffi`.
 *
 * @param filter The devices to list.
 * @returns One row for each device.
 * @throws {LoopError} If sysfs is missing or cannot be read, `under` is no directory
 * (`ENOTDIR`), or a device cannot be opened to read its reference (`EACCES`).
 * @throws {TypeError} If a filter is unknown or has the wrong type.
 *
 * @example Print the backing files
 * ```ts
 * import { list } from "@loopdev/loopdev";
 *
 * for (const device of list()) {
 *   console.log(device.path, device.backingFile);
 * }
 * ```
 *
 * @example Find what a build has left attached
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
 * Lists devices like {@linkcode list}, with the reference of each. Every device is
 * opened for reading. A device whose file is on a server that might not answer has no
 * reference.
 */
export function listWithReferences(filter: ListFilter): LoopDevice[] {
  const { records, reference } = select(filter);
  const devices = withReferences(records);
  return reference === undefined
    ? devices
    : devices.filter((device) => device.reference === reference);
}

/**
 * Lists devices like {@linkcode list}, by where the file of each is if its path is under
 * a directory: containers share the devices, and often the paths.
 */
export function listByPlace(
  filter: ListFilter,
): Record<"here" | "elsewhere" | "unknown", LoopDevice[]> {
  const { records, reference, device } = select(filter);
  const lookup = new Lookup(device);
  const found = reference === undefined
    ? records
    : records.filter((record) => referenceOf(record, lookup) === reference);
  const isHere = filter.under === undefined;
  const places = Map.groupBy(
    found,
    (record) => isHere ? "here" : placeOf(record, lookup),
  );
  const devicesAt = (place: Place) =>
    (places.get(place) ?? []).map(({ device }) => device);
  return {
    here: devicesAt("here"),
    elsewhere: devicesAt("elsewhere"),
    unknown: devicesAt("unknown"),
  };
}

interface Selected {
  readonly records: DeviceRecord[];
  readonly reference: string | undefined;
  /** Device number of the file system of `under`, if the directory exists. */
  readonly device: number | undefined;
}

/** Returns the devices that pass a filter, before their references are read. */
function select(filter: ListFilter): Selected {
  checkOptions(filter, ["under", "deleted", "reference"]);
  const { reference } = filter;
  if (reference !== undefined && typeof reference !== "string") {
    throw new TypeError(`Cannot use reference: it must be a string`);
  }
  const deleted = checkBoolean(filter.deleted, "deleted");
  const directory = filter.under === undefined
    ? undefined
    : canonicalDirectory(checkPath(filter.under));
  const records = readDevices()
    .filter(({ device }) => deleted === undefined || device.deleted === deleted)
    .filter(({ backingPath }) =>
      directory === undefined || beginsWith(backingPath, directory.prefix)
    );
  return { records, reference, device: directory?.device };
}

function withReferences(records: readonly DeviceRecord[]): LoopDevice[] {
  const lookup = new Lookup();
  return records.map((record) => {
    const reference = referenceOf(record, lookup);
    return { ...record.device, ...(reference !== undefined && { reference }) };
  });
}

const SLASH = "/".charCodeAt(0);

interface Directory {
  /** The bytes that paths in the directory start with, as the kernel reports them. */
  readonly prefix: Uint8Array;
  /** Device number of its file system, if the directory exists. */
  readonly device?: number;
}

/** Resolves the symbolic links in the path of a directory. */
function canonicalDirectory({ text, bytes }: FilePath): Directory {
  const fd = openAt(AT_FDCWD, bytes, O_PATH | O_DIRECTORY);
  if (fd < 0) {
    // The directory may have been deleted, with the files in it.
    if (fd === -ENOENT || (fd === -ENOTDIR && !exists(bytes))) {
      return { prefix: asPrefix(absolute(bytes)) };
    }
    unwrapStat(fd, `Cannot examine ${quote(text)}`, text, "open");
  }
  using directory = new FileDescriptor(fd);
  const path = readLinkBytes(pathOf(directory.fd));
  const prefix = asPrefix(
    typeof path === "number" ? absolute(bytes) : path.slice(),
  );
  const stat = statOf(directory.fd);
  return typeof stat === "number"
    ? { prefix }
    : { prefix, device: stat.device };
}

function exists(path: CString): boolean {
  return typeof statAt(AT_FDCWD, path) !== "number";
}

/** Makes a NUL-terminated path absolute. */
function absolute(bytes: Uint8Array): Uint8Array {
  const path = bytes.subarray(0, bytes.length - 1);
  if (path[0] === SLASH) return path;
  const parent = readLinkBytes("/proc/self/cwd");
  if (typeof parent === "number") return path;
  return new Uint8Array([...parent, SLASH, ...path]);
}

/** Returns the bytes that the paths in a directory start with: its path and one slash. */
export function asPrefix(path: Uint8Array): Uint8Array {
  let end = path.length;
  while (end > 0 && path[end - 1] === SLASH) end--;
  return new Uint8Array([...path.subarray(0, end), SLASH]);
}

function beginsWith(path: Uint8Array, prefix: Uint8Array): boolean {
  return prefix.every((byte, index) => path[index] === byte);
}

/**
 * Describes one device, like {@linkcode list}, without reading the others.
 *
 * Requires `--allow-ffi`, but no privileges.
 *
 * @param device The device. If it is a row of {@linkcode list}, its identity is
 * checked, from Linux 5.15 on.
 * @returns The device, or `undefined` if no file is attached to it or it does not
 * exist.
 * @throws {StaleDeviceError} If the device is now bound to another file.
 * @throws {UnexpectedDevice} If the path does not lead to a loop device.
 * @throws {LoopError} If the path does not exist or sysfs cannot be read.
 *
 * @example Read the size of one device
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
  if (record === undefined) existingMinors(); // throws if there is no sysfs
  return record?.device;
}

/**
 * Finds the devices that a file is attached to. Files are compared by device and inode
 * number, not by name, so hard links, symbolic links and bind mounts are recognized.
 *
 * A device is opened only if the path of its backing file leads to this file, or leads
 * nowhere in this mount namespace. Some devices are therefore not found: those whose
 * path leads to another file here, because of a mount or another mount namespace, and
 * those whose file is on a file system that might not answer (FUSE, NFS), unless `file`
 * is on the same one. A file seen through an overlayfs and the same file in its upper
 * directory count as two files, because the kernel does not reveal that they are one.
 *
 * Requires `--allow-ffi`.
 *
 * @param file The file. A path is relative to the working directory.
 * @param options Further conditions.
 * @returns The devices in numeric order, as {@linkcode list} returns them.
 * @throws {LoopError} If the file cannot be examined (`ENOENT`, `EACCES` …).
 * @throws {RangeError} If the offset is out of range.
 *
 * @example Find the device of a file
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
