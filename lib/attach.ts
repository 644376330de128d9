/** Attaches a file as a verified loop device; on failure, leaves nothing attached. */
import {
  CONFIGURE_OPTIONS,
  type ConfigureOptions,
  encodeOptions,
} from "./kernel/configuration.ts";
import {
  checkMinor,
  checkOptions,
  checkPath,
  checkSignal,
  checkTimeout,
  type FilePath,
} from "./arguments.ts";
import { Attachment } from "./attachment.ts";
import { bindFirstFree, bindMinor } from "./attaching/allocation.ts";
import { type Backing, openBacking } from "./attaching/backing.ts";
import { bindOrClose, completeBinding } from "./attaching/binding.ts";
import { BoundLoop } from "./attaching/bound_loop.ts";
import {
  type Claim,
  lockRange,
  refuseOverlap,
  refuseRivals,
} from "./attaching/overlap.ts";
import {
  DEFAULT_BLOCK_SIZE,
  deviceSize,
  refuseEmptyRange,
  type Wanted,
} from "./attaching/device_size.ts";
import type { LoopDevice } from "./kernel/attached_devices.ts";
import { quote } from "./errors.ts";
import { checkSymlinks, unwrapStat } from "./kernel/file_descriptor.ts";
import type { Symlinks } from "./kernel/found_file.ts";
import { type Loop, refuseBound } from "./kernel/loop.ts";
import type { NodeDirectory } from "./kernel/node_directory.ts";
import { openAnyNode } from "./kernel/nodes.ts";
import { recallRdev } from "./kernel/vacancy.ts";
import { statOf } from "./sys/stat.ts";
import type { LoopConfig } from "./sys/loop_uapi.ts";
import { DEFAULT_TIMEOUT } from "./waiting.ts";

/** Policy of {@linkcode attach} for other devices over the same bytes of a file. */
export type Overlap = "lock" | "refuse" | "allow";

/** Options of {@linkcode attach}. Sizes and offsets are in bytes. */
export interface AttachOptions extends Omit<ConfigureOptions, "blockSize"> {
  /**
   * The logical block size, as for {@linkcode Loop.configure}. With `"probe"`, the
   * sector size of the GPT in the file, or the kernel's default if the file has no GPT.
   */
  blockSize?: number | "probe" | undefined;
  /**
   * Detaches the device at its last close, even if the process is killed.
   *
   * @default {true}
   */
  autoclear?: boolean | undefined;
  /**
   * Policy for a file whose bytes another loop device already uses. Two writable
   * devices over the same bytes corrupt them, because each has its own page cache.
   *
   * - `"lock"` locks the range of the file (`F_OFD_SETLK`) for as long as it is
   *   attached. Among users of this library, several readers can share a file, but a
   *   writer excludes all others; a conflict is `EBUSY`. On a file system without
   *   locks, the range is not locked.
   * - `"refuse"` also looks for devices attached by other tools. Any overlap is
   *   `EBUSY`.
   * - `"allow"` does neither.
   *
   * A device is not found if its path leads to another file in this mount namespace. A
   * block device is locked through its node, so two nodes of one device do not exclude
   * each other. A file seen through an overlayfs and the same file in its upper
   * directory are two files to the kernel: neither `"lock"` nor `"refuse"` detects that
   * they overlap. QEMU locks bytes 100 to 103 and 200 to 203 of its images, which can
   * conflict with these locks.
   *
   * @default {"lock"}
   */
  overlap?: Overlap | undefined;
  /**
   * A directory in which to create nodes for the device and its partitions, for other
   * programs that have no nodes in `/dev`, as in a container. It must not be on a
   * devtmpfs. {@linkcode Attachment.path} is in that directory. A node of the device
   * that already exists there is used as it is.
   *
   * If this option is not given and `/dev` has no node of the device, or gets none of
   * its partitions, the nodes are created in a private directory: `/run/loopdev-…`, or
   * one in `/tmp`, `/dev` or `/dev/shm` if `/run` does not accept device nodes.
   *
   * `detach` removes the nodes that were created, and fails if it cannot. They outlive
   * `persist` and a killed process; a node that is left over gives access to later
   * devices of that number. {@linkcode detach} also removes private nodes, and
   * {@linkcode doctor} reports those that are left over.
   */
  nodes?: string | URL | undefined;
  /**
   * Policy for symbolic links. With `"refuse"`, a symbolic link in any part of the path
   * of the file is an error (`ELOOP`), as for {@linkcode openFile}. Does not apply to a
   * descriptor.
   *
   * @default {"follow"}
   */
  symlinks?: "follow" | "refuse" | undefined;
  /**
   * The number of the device to use. It is added if it does not exist; no other device
   * is tried. By default, the first free device is used.
   */
  minor?: number | undefined;
  /**
   * Time in milliseconds that disposal of the {@linkcode Attachment} waits for other
   * processes to close the device.
   *
   * @default {5000}
   */
  detachTimeout?: number | undefined;
  /** Signal used to abort. The promise rejects with its reason. */
  signal?: AbortSignal | undefined;
}

/**
 * Attaches a file to a loop device.
 *
 * The device is configured in one step and verified. Its size, block size and
 * properties are exactly as requested; otherwise `attach` throws and leaves nothing
 * attached. If another process takes a device first, the next one is tried, for up to 2
 * seconds.
 *
 * With `autoclear`, which is the default, the kernel detaches the device when the
 * process ends, however it ends. To detach earlier, dispose of the
 * {@linkcode Attachment} or call its `detach`; only these report write-back errors.
 *
 * Two writable devices over the same bytes of a file corrupt them, so an overlap is an
 * error unless the `overlap` option allows it. If the file has a lot of unwritten data,
 * it is first written back without blocking the event loop.
 *
 * Requires `--allow-ffi`, and root or membership in the group of the device nodes.
 *
 * @param file The file, or an open descriptor of it. A descriptor stays yours and may
 * be closed afterwards. A path is relative to the working directory. A `file:` URL can
 * name a file whose name is not UTF-8.
 * @param options Options for attaching.
 * @returns The attached device, which detaches when it is disposed of.
 * @throws {LoopError} If the file cannot be opened (`ENOENT`, `EACCES`, `EROFS`,
 * `EISDIR` …), if its bytes are already attached or locked (`EBUSY`), if no device
 * could be bound (`EBUSY` and others; the message says how many were tried), if the
 * range holds no whole block or direct I/O is not possible (`EINVAL`), or if the file
 * leads back to the device (`EBADF`).
 * @throws {TypeError} If an option is unknown or has the wrong type.
 * @throws {RangeError} If the offset, limit, block size, number or reference is out of
 * range.
 *
 * @example Attach a file for the length of a block
 * ```ts
 * import { attach } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".img" });
 * await Deno.truncate(path, 64 * 1024 * 1024);
 * {
 *   await using device = await attach(path, { blockSize: 4096 });
 *   assertEquals(device.size, 64 * 1024 * 1024);
 * }
 * await Deno.remove(path);
 * ```
 */
export async function attach(
  file: string | URL | { readonly fd: number },
  options: AttachOptions = {},
): Promise<Attachment> {
  const request = parse(options);
  using cleanup = new DisposableStack();
  using unfinished = new DisposableStack();
  let nodes = request.nodes &&
    unfinished.use(await openNodeDirectory(request.nodes));
  const claim = cleanup.use(await prepare(file, request));
  const device = {
    options: request.wanted,
    config: request.config,
    backing: claim.backing,
  };
  const loop = await bindDevice(device, request);
  const finish = async () => {
    // Tools that take no lock may have attached the file since it was checked.
    if (request.overlap === "refuse") {
      await refuseRivals(claim, loop, request.signal);
    }
    if (nodes !== undefined) nodes.add(loop.name, rdevOfOpen(loop));
    else if (loop.isWithoutNode) nodes = await privateNodes(loop);
  };
  await completeBinding(loop, device, ({ backing, size }) => {
    loop.remember(backing);
    refuseEmptyRange(device, size);
    const isDone = request.overlap !== "refuse" && nodes === undefined &&
      !loop.isWithoutNode;
    return isDone ? undefined : finish();
  });
  unfinished.move();
  if (request.overlap !== "allow") {
    loop.hold(claim);
    cleanup.move();
  }
  return new Attachment(loop, { nodes, timeout: request.detachTimeout });
}

/** Validated arguments of {@linkcode attach}. */
interface AttachRequest {
  readonly wanted: ConfigureOptions;
  readonly config: LoopConfig;
  readonly probesBlockSize: boolean;
  readonly minor: number | undefined;
  readonly overlap: Overlap;
  readonly symlinks: Symlinks;
  readonly nodes: FilePath | undefined;
  readonly detachTimeout: number;
  readonly signal: AbortSignal | undefined;
}

/** Names of the options of {@linkcode attach}. */
export const ATTACH_OPTIONS = [
  ...CONFIGURE_OPTIONS,
  "detachTimeout",
  "minor",
  "nodes",
  "overlap",
  "signal",
  "symlinks",
] as const;

/** Throws for bad options, before any system call. */
export function checkAttachOptions(options: AttachOptions): void {
  parse(options);
}

/** Checks the options before any system call. */
function parse(options: AttachOptions): AttachRequest {
  checkOptions(options, ATTACH_OPTIONS);
  const probesBlockSize = options.blockSize === "probe";
  const wanted: ConfigureOptions = {
    ...options,
    autoclear: options.autoclear ?? true,
    readOnly: options.readOnly ?? false,
    blockSize: options.blockSize === "probe" ? undefined : options.blockSize,
  };
  const request = {
    wanted,
    config: encodeOptions(wanted),
    probesBlockSize,
    minor: options.minor === undefined ? undefined : checkMinor(options.minor),
    overlap: checkOverlap(options.overlap),
    symlinks: checkSymlinks(options.symlinks),
    nodes: options.nodes === undefined ? undefined : checkPath(options.nodes),
    detachTimeout: options.detachTimeout === undefined
      ? DEFAULT_TIMEOUT
      : checkTimeout(options.detachTimeout),
    signal: checkSignal(options.signal),
  };
  request.signal?.throwIfAborted();
  return request;
}

function checkOverlap(value: unknown): Overlap {
  if (value === undefined) return "lock";
  if (value === "lock" || value === "refuse" || value === "allow") return value;
  throw new TypeError(
    `Cannot use ${
      String(value)
    } as overlap: it must be "lock", "refuse" or "allow"`,
  );
}

/** Opens the file and does everything that can be done before a device is touched. */
async function prepare(
  file: string | URL | { readonly fd: number },
  { wanted, config, probesBlockSize, overlap, symlinks, signal }: AttachRequest,
): Promise<Claim & Disposable> {
  const readOnly = wanted.readOnly ?? false;
  const backing = openBacking(file, {
    readOnly,
    isLocked: overlap !== "allow",
    symlinks,
  });
  const claim = {
    backing,
    start: config.info.offset,
    length: config.info.sizelimit,
    readOnly,
    [Symbol.dispose]: () => backing[Symbol.dispose](),
  };
  try {
    if (overlap !== "allow") await lockRange(claim, isBeingFreed, signal);
    if (overlap === "refuse") refuseOverlap(claim);
    if (probesBlockSize) {
      config.blockSize = await probeBlockSize(backing, config, signal) ?? 0;
    }
    // The kernel may raise the block size for direct I/O; that would not be what was
    // requested.
    wanted.blockSize = config.blockSize || DEFAULT_BLOCK_SIZE;
    if (backing.isRegular) {
      refuseEmptyRange({ options: wanted, config, backing });
    }
    if (backing.isMuchDirty) await backing.writeBackInBackground(signal);
    config.fd = backing.fd;
    return claim;
  } catch (error) {
    backing[Symbol.dispose]();
    throw error;
  }
}

/**
 * Returns `true` if an autoclear device has no users left, because its owner was killed
 * a moment ago.
 */
async function isBeingFreed(device: LoopDevice): Promise<boolean> {
  if (!device.autoclear) return false;
  try {
    const { findHolders } = await import("./kernel/holder_search.ts");
    const { holders, complete } = await findHolders(device.minor);
    return complete && holders.length === 0;
  } catch {
    return false; // unknown: report the device as busy
  }
}

/** Binds the file to a device in one step. */
function bindDevice(
  device: Wanted,
  { minor, signal }: AttachRequest,
): BoundLoop | Promise<BoundLoop> {
  signal?.throwIfAborted();
  const readOnly = device.options.readOnly ?? false;
  const tryDevice = (minor: number): BoundLoop =>
    bindOrClose(
      new BoundLoop(openAnyNode(minor, readOnly, recallRdev(minor))),
      device,
    );
  const file = device.backing.name;
  if (minor === undefined) return bindFirstFree(tryDevice, file, signal);
  refuseBound(minor, file);
  return bindMinor(tryDevice, minor);
}

// Loaded on demand: rarely needed if /dev has nodes.

async function openNodeDirectory(path: FilePath): Promise<NodeDirectory> {
  const { NodeDirectory } = await import("./kernel/node_directory.ts");
  return NodeDirectory.open(path);
}

/**
 * Creates a private directory with the node of a device, unless the node has appeared
 * in `/dev` by now.
 */
async function privateNodes(loop: Loop): Promise<NodeDirectory | undefined> {
  const { hasNode, NodeDirectory } = await import("./kernel/node_directory.ts");
  const rdev = rdevOfOpen(loop);
  return hasNode(loop.name, rdev)
    ? undefined
    : NodeDirectory.makePrivate(loop.name, rdev);
}

function rdevOfOpen({ fd, path }: Loop): number {
  return unwrapStat(statOf(fd), `Cannot examine ${quote(path)}`, path).rdev;
}

/** Reads the sector size of the GPT in the part of the file that the device will show. */
async function probeBlockSize(
  backing: Backing,
  { info }: LoopConfig,
  signal: AbortSignal | undefined,
): Promise<number | undefined> {
  const { probe } = await import("./partitions/table.ts");
  using reader = backing.openForReading();
  return await probe({
    fd: reader.fd,
    name: backing.name,
    start: Number(info.offset),
    size: Number(deviceSize(backing.size, info)),
    signal,
  });
}

/** Files attached by {@linkcode attachAll}. Disposal detaches them in reverse order. */
export interface AttachmentGroup extends AsyncDisposable {
  /** The attached devices, in the order of the files. */
  readonly devices: Attachment[];
}

/**
 * Attaches several files, all or none.
 *
 * If one file cannot be attached, the devices before it are detached again. Disposal of
 * the group detaches all devices in reverse order, even if detaching one of them fails,
 * and throws the first error.
 *
 * @param files The files, or open descriptors of them.
 * @param options Options for each file, as for {@linkcode attach}.
 * @returns The devices, in the order of the files.
 * @throws {TypeError} If `minor` is given with several files.
 * @throws {LoopError} If a file cannot be attached, as for {@linkcode attach}.
 *
 * @example Attach the members of a mirror
 * ```ts
 * import { attachAll, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using first = openMemory(1 << 20);
 * using second = openMemory(1 << 20);
 * await using group = await attachAll([first, second]);
 * assertEquals(group.devices.length, 2);
 * ```
 */
export async function attachAll(
  files: Iterable<string | URL | { readonly fd: number }>,
  options: AttachOptions = {},
): Promise<AttachmentGroup> {
  const all = [...files];
  checkOptions(options, ATTACH_OPTIONS);
  if (options.minor !== undefined && all.length > 1) {
    throw new TypeError(
      `Cannot attach ${all.length} files to loop${
        checkMinor(options.minor)
      }: minor takes one file`,
    );
  }
  const devices: Attachment[] = [];
  const detachAll = async () => {
    const failures: unknown[] = [];
    for (const device of devices.toReversed()) {
      await device[Symbol.asyncDispose]().catch((error) =>
        failures.push(error)
      );
    }
    if (failures.length > 0) throw failures[0];
  };
  try {
    for (const file of all) devices.push(await attach(file, options));
  } catch (error) {
    await detachAll().catch(() => {}); // report the error of attaching, not of the cleanup
    throw error;
  }
  return { devices, [Symbol.asyncDispose]: detachAll };
}
