/** Attaching: a file becomes a device that is what was asked for, or nothing stays. */
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
import type { Loop } from "./kernel/loop.ts";
import type { NodeDirectory } from "./kernel/node_directory.ts";
import { openAnyNode } from "./kernel/nodes.ts";
import { recallRdev } from "./kernel/vacancy.ts";
import { statOf } from "./sys/stat.ts";
import type { LoopConfig } from "./sys/loop_uapi.ts";
import { DEFAULT_TIMEOUT } from "./waiting.ts";

/** What {@linkcode attach} does about other devices over the same bytes of a file. */
export type Overlap = "lock" | "refuse" | "allow";

/** How {@linkcode attach} attaches. Sizes and offsets are bytes. */
export interface AttachOptions extends Omit<ConfigureOptions, "blockSize"> {
  /**
   * The logical block size, as for {@linkcode Loop.configure}; or `"probe"`: that of the
   * GPT in the file, and the kernel's default where there is none.
   */
  blockSize?: number | "probe" | undefined;
  /**
   * The kernel detaches at the last close, also when the process is killed.
   *
   * @default {true}
   */
  autoclear?: boolean | undefined;
  /**
   * What to do when a loop device shows some of the bytes already: two writable devices
   * over the same bytes corrupt them, since each has a page cache of its own.
   *
   * - `"lock"` locks the range of the file (`F_OFD_SETLK`) for as long as it is attached.
   *   Among users of this library readers share a file and a writer has it alone; `EBUSY`
   *   otherwise. A file system without locks is used without.
   * - `"refuse"` also looks for devices of other tools, and is `EBUSY` for any overlap.
   * - `"allow"` does neither.
   *
   * A device whose path leads to another file from here, because of a mount or another
   * mount namespace, is not found. QEMU locks bytes 100 to 103 and 200 to 203 of its
   * images. A block device is locked by its node: two nodes are two files. A file seen through an overlayfs and the same file in its upper directory are
   * two files to the kernel: neither `"lock"` nor `"refuse"` finds that they overlap.
   *
   * @default {"lock"}
   */
  overlap?: Overlap | undefined;
  /**
   * A directory, on no devtmpfs, in which nodes of the device and its partitions are
   * made, for others to use where `/dev` has none: in a container. `path` is in it then.
   * A node of the device that is there already is used as it is.
   *
   * Without it, and where `/dev` has no node of the device, they are in a private
   * directory: `/run/loopdev-…`, or in `/tmp`, `/dev` or `/dev/shm` where `/run` does not
   * take device nodes.
   *
   * What was made is removed by `detach`, which fails when it cannot be. It outlives
   * `persist` and a killed process: a node that is left behind gives access to later
   * devices of that number. Private ones are removed by {@linkcode detach} too, and
   * {@linkcode doctor} shows those that are left.
   */
  nodes?: string | URL | undefined;
  /**
   * `"refuse"`: an error, `ELOOP`, when any part of the path of the file is a symbolic
   * link, as for {@linkcode openFile}. A descriptor has no path.
   *
   * @default {"follow"}
   */
  symlinks?: "follow" | "refuse" | undefined;
  /** This device; it is added when it does not exist, and no other is tried. Without it the first free one. */
  minor?: number | undefined;
  /**
   * How many milliseconds disposal of the {@linkcode Attachment} waits for others who
   * have the device open.
   *
   * @default {5000}
   */
  detachTimeout?: number | undefined;
  /** Ends the trying. */
  signal?: AbortSignal | undefined;
}

/**
 * Attaches a file to a loop device.
 *
 * The device is configured in one step and verified: it has the size, the block size
 * and the properties that were asked for, or `attach` throws and nothing stays
 * attached. When others take a device first, the next one is tried, for at most 2
 * seconds.
 *
 * With `autoclear`, which is the default, the kernel detaches when the process ends,
 * however it ends. Dispose of the {@linkcode Attachment}, or call its `detach`, to
 * detach before; a write-back error is reported only then.
 *
 * Two writable devices over the same bytes of a file corrupt them: that is an error,
 * unless `overlap` says otherwise. Much that is not written back of the file yet is
 * written back first, off the event loop.
 *
 * Requires `--allow-ffi`, and root or the group of the device nodes.
 *
 * @param file The file, or an open descriptor of it, which stays yours and may be
 * closed afterwards. A path is relative to the working directory; a `file:` URL can
 * name files whose names are not UTF-8.
 * @param options How to attach it.
 * @returns The attached device, which detaches when it is disposed of.
 * @throws {LoopError} what opening the file gives (`ENOENT`, `EACCES`, `EROFS`,
 * `EISDIR` …); `EBUSY` when the bytes are attached already, or locked; `EBUSY` and
 * others when no device could be had, with the number of those that were tried; `EINVAL`
 * when the range holds no whole block, or direct I/O was asked for and cannot be;
 * `EBADF` when the file leads back to the device
 * @throws {TypeError} for options that do not exist or have the wrong type
 * @throws {RangeError} for a bad offset, limit, block size, number or reference
 *
 * @example A device for the length of a block
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
    // Who does not lock may have attached it since we looked.
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

/** What is to be done, checked. */
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

/** The options of {@linkcode attach} by name. */
export const ATTACH_OPTIONS = [
  ...CONFIGURE_OPTIONS,
  "detachTimeout",
  "minor",
  "nodes",
  "overlap",
  "signal",
  "symlinks",
] as const;

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

/** Opens the file, and does all that can be done before a device is touched. */
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
      config.blockSize = await probeBlockSize(backing, config) ?? 0;
    }
    // The kernel raises it for direct I/O where it has to: not what was asked for.
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

/** Whether nobody uses an autoclear device any more: its owner was killed a moment ago. */
async function isBeingFreed(device: LoopDevice): Promise<boolean> {
  if (!device.autoclear) return false;
  try {
    const { findHolders } = await import("./holder_search.ts");
    const { holders, complete } = await findHolders(device.minor);
    return complete && holders.length === 0;
  } catch {
    return false; // nobody knows: then it is busy
  }
}

/** Binds the file to a device, in one step. */
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
  return minor === undefined
    ? bindFirstFree(tryDevice, device.backing.name, signal)
    : bindMinor(tryDevice, minor);
}

// Loaded when they are needed: where /dev has nodes they seldom are.

async function openNodeDirectory(path: FilePath): Promise<NodeDirectory> {
  const { NodeDirectory } = await import("./kernel/node_directory.ts");
  return NodeDirectory.open(path);
}

/** A directory with the node of a device that has none in `/dev`. It may have appeared there meanwhile. */
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

/** The sector size of the GPT in the part of the file that will be the device. */
async function probeBlockSize(
  backing: Backing,
  { info }: LoopConfig,
): Promise<number | undefined> {
  const [{ probeSectorSize }, { DescriptorSource }] = await Promise.all([
    import("./partitions/table.ts"),
    import("./partitions/descriptor_source.ts"),
  ]);
  using reader = backing.openForReading();
  const range = {
    start: Number(info.offset),
    size: Number(deviceSize(backing.size, info)),
  };
  return probeSectorSize(new DescriptorSource(reader.fd, range, backing.name));
}
