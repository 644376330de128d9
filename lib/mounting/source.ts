/** Devices to mount: whole loop devices and partitions. */
import type { FilePath } from "../arguments.ts";
import { quote, UnexpectedDevice, unwrap } from "../errors.ts";
import { FileDescriptor, unwrapFound } from "../kernel/file_descriptor.ts";
import { FoundFile } from "../kernel/found_file.ts";
import {
  bindingOf,
  hasSysfs,
  LOOP_MAJOR,
  throwUnless,
} from "../kernel/loop_sysfs.ts";
import { readAhead } from "../partitions/read_ahead.ts";
import { BLKGETSIZE64, BLKROGET } from "../sys/blk_uapi.ts";
import { EBUSY, ENODEV, ENOENT, ENXIO } from "../sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  ioctlPointer,
  O_EXCL,
  O_NONBLOCK,
  O_RDONLY,
} from "../sys/libc.ts";
import { isBlockDevice, majorMinor, type Stat } from "../sys/stat.ts";
import { readLink } from "../sys/sysfs.ts";
import { type FileSystem, recognize } from "./recognize.ts";

/** A loop device, or a partition of one. */
export interface LoopPlace {
  readonly minor: number;
  /** Name of the partition (`loop3p1`), unless it is the whole device. */
  readonly partition: string | undefined;
}

/** Returns the loop device of a device number, or `undefined` for another block device. */
export function loopPlaceOf(rdev: number): LoopPlace | undefined {
  const [major, minor] = majorMinor(rdev);
  const path = `/sys/dev/block/${major}:${minor}`;
  const target = readLink(path);
  if (typeof target !== "string") {
    throwUnless([ENOENT], target, path);
    return major === LOOP_MAJOR && !hasSysfs()
      ? { minor, partition: undefined }
      : undefined;
  }
  const [, digits, partition] = /\/block\/loop(\d+)(?:\/(loop\d+p\d+))?$/
    .exec(target) ?? [];
  return digits === undefined
    ? undefined
    : { minor: Number(digits), partition };
}

/** Finds the loop device or partition that a path leads to. Returns `undefined` for any other file. */
export function findSource(path: FilePath): SourceDevice | undefined {
  using unused = new DisposableStack();
  const found = unused.use(
    unwrapFound(FoundFile.find(AT_FDCWD, path.bytes), () => ({
      action: `Cannot open ${quote(path.text)}`,
      operation: "open",
      path: path.text,
    })),
  );
  const place = isBlockDevice(found.stat)
    ? loopPlaceOf(found.stat.rdev)
    : undefined;
  if (place === undefined) return undefined;
  unused.move();
  return new SourceDevice(found.canonicalPath ?? path.text, place, found);
}

/** Identity of a device that is not open. */
export interface Source {
  readonly path: string;
  /** Number of the loop device. */
  readonly minor: number;
  /** Device number, encoded as in `st_rdev`. */
  readonly rdev: number;
  /** Inode of the binding, as {@linkcode bindingOf} returns it; `undefined` without sysfs. */
  readonly binding: bigint | undefined;
}

/** Errors of a device that no longer exists. */
const GONE: readonly number[] = [ENOENT, ENXIO, ENODEV];

/**
 * Returns `true` if no file system on the device is mounted in any namespace and no
 * process holds the device exclusively.
 */
export function isSourceReleased(
  { path, minor, rdev, binding }: Source,
): boolean {
  // Another file is attached by now, and its device must not be opened.
  if (binding !== undefined && bindingOf(minor) !== binding) return true;
  const failure = {
    action: `Cannot look whether ${quote(path)} is mounted`,
    operation: "open",
    path,
  };
  const found = FoundFile.find(AT_FDCWD, cString(path));
  if (typeof found === "number" && GONE.includes(-found)) return true;
  using node = unwrapFound(found, () => failure);
  if (node.stat.rdev !== rdev) return true; // another device has its name
  const fd = node.open(O_RDONLY | O_NONBLOCK | O_EXCL);
  if (fd === -EBUSY) return false;
  if (GONE.includes(-fd)) return true;
  new FileDescriptor(unwrap(fd, () => failure)).close();
  return true;
}

/** The node of a device, held by an `O_PATH` descriptor. */
export class SourceDevice implements Disposable {
  readonly path: string;
  readonly place: LoopPlace;
  readonly stat: Stat;
  readonly #found: FoundFile;

  /** Takes over the file. */
  constructor(path: string, place: LoopPlace, found: FoundFile) {
    this.path = path;
    this.place = place;
    this.stat = found.stat;
    this.#found = found;
  }

  /** Finds a node, which must belong to this loop device or to one of its partitions. */
  static of(path: FilePath, minor: number): SourceDevice {
    using unused = new DisposableStack();
    const found = unused.use(
      unwrapFound(FoundFile.find(AT_FDCWD, path.bytes), () => ({
        action: `Cannot mount ${quote(path.text)}`,
        operation: "open",
        path: path.text,
      })),
    );
    const { mode, rdev } = found.stat;
    const place = isBlockDevice(found.stat) ? loopPlaceOf(rdev) : undefined;
    if (place?.minor === minor) {
      unused.move();
      return new SourceDevice(path.text, place, found);
    }
    throw new UnexpectedDevice(minor, rdev, mode, {
      path: path.text,
      hint: `it is no node of loop${minor}`,
    });
  }

  /** Identity of the device, for use after closing. */
  get source(): Source {
    const { path, place: { minor }, stat: { rdev } } = this;
    return { path, minor, rdev, binding: bindingOf(minor) };
  }

  /** Opens the device for reading, which keeps it attached. */
  open(): OpenSource {
    const { path } = this;
    const fd = this.#found.open(O_RDONLY | O_NONBLOCK);
    return new OpenSource(
      path,
      new FileDescriptor(
        unwrap(fd, () => ({
          action: `Cannot open ${quote(path)}`,
          operation: "open",
          path,
        })),
      ),
    );
  }

  [Symbol.dispose](): void {
    this.#found[Symbol.dispose]();
  }
}

/** An open device. */
export class OpenSource implements Disposable {
  readonly #path: string;
  readonly #descriptor: FileDescriptor;

  constructor(path: string, descriptor: FileDescriptor) {
    this.#path = path;
    this.#descriptor = descriptor;
  }

  /** Recognizes the file system on the device. */
  async recognize(
    signal: AbortSignal | undefined,
  ): Promise<FileSystem | undefined> {
    const size = new BigUint64Array(1);
    this.#ioctl("BLKGETSIZE64", BLKGETSIZE64, size);
    const { fd } = this.#descriptor;
    const name = quote(this.#path);
    return await readAhead(
      { fd, start: 0, size: Number(size[0]), name, signal },
      recognize,
    );
  }

  /** `true` if the device is read-only. */
  get isReadOnly(): boolean {
    const value = new Int32Array(1);
    this.#ioctl("BLKROGET", BLKROGET, value);
    return value[0] !== 0;
  }

  #ioctl(
    operation: string,
    request: number,
    value: BigUint64Array | Int32Array,
  ): void {
    const { fd } = this.#descriptor;
    unwrap(ioctlPointer(fd, request, new Uint8Array(value.buffer)), () => ({
      action: `Cannot examine ${quote(this.#path)}`,
      operation,
      path: this.#path,
    }));
  }

  [Symbol.dispose](): void {
    this.#descriptor.close();
  }
}
