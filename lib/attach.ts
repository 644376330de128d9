/** Attaching: a file becomes a device that is what was asked for, or nothing stays. */
import { bindAny, bindThis } from "./attaching/allocation.ts";
import {
  checkMinor,
  checkOptions,
  checkPath,
  checkSignal,
} from "./arguments.ts";
import { type Backing, openBacking } from "./attaching/backing.ts";
import {
  type BackingFile,
  checkDetachOptions,
  detachBinding,
  type DetachOptions,
  isFree,
  release,
  type Released,
  sequenceOf,
  undo,
  untilFree,
} from "./detach.ts";
import { check, LoopError, quote } from "./errors.ts";
import { checkStat, checkSymlinks } from "./kernel/file_descriptor.ts";
import {
  bind,
  CONFIGURE_OPTIONS,
  type ConfigureOptions,
  decodeFlags,
  encodeOptions,
  type InternalOptions,
  Loop,
  NODE,
} from "./kernel/loop.ts";
import { isBound } from "./kernel/loop_sysfs.ts";
import { hasNode, NodeDirectory } from "./kernel/node_directory.ts";
import { openAnyNode } from "./kernel/nodes.ts";
import { lockRange, refuseOverlap, refuseRivals } from "./attaching/overlap.ts";
import {
  checkPartitionsOptions,
  type Partition,
  type PartitionsOptions,
} from "./partitions/partitions.ts";
import { removeStalePartitions } from "./attaching/stale_partitions.ts";
import { EBADF, ENODEV, ENOENT, ENXIO } from "./sys/errno.ts";
import { statOf, writeBack } from "./sys/libc.ts";
import { LO_FLAGS_PARTSCAN, type LoopConfig } from "./sys/loop_uapi.ts";
import { deviceSize, verify } from "./attaching/verification.ts";

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
   * `"refuse"`: an error, `EBUSY`, when any byte of the range is behind a loop device
   * already, whoever attached it. The bytes are locked (`F_OFD_SETLK`) as long as the
   * device is attached, so that among users of this library, and QEMU, there is no race.
   * Devices of other tools are found as by {@linkcode find}: not when their path leads to
   * another file from here.
   *
   * @default {"allow"}
   */
  overlap?: "allow" | "refuse" | undefined;
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
 * Two read-write devices over the same bytes of a file corrupt them: each has a page
 * cache of its own. With `overlap: "refuse"` that is an error.
 *
 * Requires `--allow-ffi`, and root or the group of the device nodes.
 *
 * @param file The file, or an open descriptor of it, which stays yours and may be
 * closed afterwards. A path is relative to the working directory; a `file:` URL can
 * name files whose names are not UTF-8.
 * @throws {LoopError} what opening the file gives (`ENOENT`, `EACCES`, `EROFS`,
 * `EISDIR` …); `EBUSY` and others when no device could be had, with the number of
 * those that were tried; `EINVAL` when direct I/O was asked for and cannot be;
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
 *   await using device = await attach(path, {
 *     blockSize: 4096,
 *     overlap: "refuse",
 *   });
 *   assertEquals(device.size, 64 * 1024 * 1024);
 * }
 * await Deno.remove(path);
 * ```
 */
export async function attach(
  file: string | URL | { readonly fd: number },
  options: AttachOptions = {},
): Promise<Attachment> {
  checkOptions(options, [
    ...CONFIGURE_OPTIONS,
    "minor",
    "nodes",
    "overlap",
    "signal",
    "symlinks",
  ]);
  const directory = options.nodes === undefined
    ? undefined
    : checkPath(options.nodes);
  const signal = checkSignal(options.signal);
  const minor = options.minor === undefined
    ? undefined
    : checkMinor(options.minor);
  const symlinks = checkSymlinks(options.symlinks);
  const refusesOverlap = checkOverlap(options.overlap) === "refuse";
  const probes = options.blockSize === "probe";
  const wanted: ConfigureOptions = {
    ...options,
    autoclear: options.autoclear ?? true,
    blockSize: options.blockSize === "probe" ? undefined : options.blockSize,
  };
  const config = encodeOptions(wanted);
  signal?.throwIfAborted();

  using unfinished = new DisposableStack();
  let nodes = directory && unfinished.use(NodeDirectory.open(directory));
  const readOnly = options.readOnly ?? false;
  using backing = openBacking(file, {
    readOnly,
    refusesOverlap,
    symlinks,
  });
  const claim = {
    backing,
    start: config.info.offset,
    length: config.info.sizelimit,
    readOnly,
  };
  if (refusesOverlap) {
    await lockRange(claim, signal);
    refuseOverlap(claim);
  }
  if (probes) {
    wanted.blockSize = await probeBlockSize(backing, config);
    config.blockSize = wanted.blockSize ?? 0;
  }
  config.fd = backing.fd;
  // Scanning is the second step: in one, it races with udev, and partitions that have
  // appeared vanish again.
  config.info.flags &= ~LO_FLAGS_PARTSCAN;
  const tryDevice = (minor: number): BoundLoop => {
    const loop = openAnyNode(
      minor,
      { readOnly },
      (options) => new BoundLoop(minor, options),
    );
    try {
      removeStalePartitions(loop);
      bind(loop, config, backing.name);
      return loop;
    } catch (error) {
      loop.close();
      throw error;
    }
  };
  const loop = minor === undefined
    ? await bindAny(tryDevice, backing.name, signal)
    : bindThis(tryDevice, minor);
  try {
    if (wanted.partscan) loop.setStatus({ partscan: true });
    loop.remember(verify(loop, wanted, config, backing));
    // Who does not lock may have attached it since we looked.
    if (refusesOverlap) await refuseRivals(claim, loop, signal);
    if (nodes !== undefined) nodes.add(loop.name, rdeviceOf(loop));
    else if (loop.isWithoutNode) nodes = privateNodes(loop);
    unfinished.move();
    return new Attachment(loop, nodes);
  } catch (error) {
    // Ours beyond doubt: this descriptor has been open since it was bound.
    await undo(loop);
    throw error;
  }
}

function checkOverlap(value: unknown): "allow" | "refuse" {
  if (value === undefined) return "allow";
  if (value === "allow" || value === "refuse") return value;
  throw new TypeError(
    `Cannot use ${String(value)} as overlap: it must be "allow" or "refuse"`,
  );
}

/**
 * A file that {@linkcode attach} attached, for as long as it is not disposed of.
 *
 * It holds the device open, so that the kernel cannot give it to anybody else.
 * `detach` and disposal detach it. After that `minor`, `path` and `diskSequence` stay
 * readable, and all else is a {@linkcode LoopError} `EBADF`.
 *
 * @example Detaching by hand, with a limit
 * ```ts
 * import { attach, openMemory } from "@loopdev/loopdev";
 *
 * using memory = openMemory(1 << 20);
 * const device = await attach(memory);
 * await device.detach({ timeout: 1000 });
 * ```
 */
export class Attachment implements AsyncDisposable {
  /** The open device. Closing it detaches, when `autoclear` is set. */
  readonly loop: Loop;
  readonly #loop: BoundLoop;
  #state: "attached" | "persisted" | "detached" = "attached";
  /** Set from the first `detach` on: written back, and the descriptor closed. */
  #released: Promise<Released> | undefined;
  #reported = false;

  readonly #nodes: NodeDirectory | undefined;

  /** Made by {@linkcode attach}. */
  constructor(loop: Loop, nodes?: unknown) {
    if (!(loop instanceof BoundLoop)) {
      throw new TypeError("Cannot make an Attachment: attach() makes them");
    }
    this.loop = this.#loop = loop;
    this.#nodes = nodes instanceof NodeDirectory ? nodes : undefined;
  }

  /** A path by which it can be opened: `/dev/loop3`, or that in the directory of its nodes. */
  get path(): string {
    return this.#nodes?.pathOf(this.#loop.name) ?? this.#loop.path;
  }

  /** The number of the device: 3 for `/dev/loop3`. */
  get minor(): number {
    return this.#loop.minor;
  }

  /** The disk sequence number of the binding; 0 before Linux 5.15. It rises when the backing file is exchanged. */
  get diskSequence(): number {
    return this.#loop.diskSequence;
  }

  /** The size in bytes, read from the device at each access. */
  get size(): number {
    return this.#loop.getSize();
  }

  /** The logical block size in bytes, read from the device at each access. */
  get blockSize(): number {
    return this.#loop.getBlockSize();
  }

  /**
   * Makes the partitions of the device appear, and tells what they are: as
   * {@linkcode partitions}.
   *
   * @throws {LoopError} `EUCLEAN` when the table is damaged; `ETIMEDOUT` when a node
   * does not appear in time
   *
   * @example
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   *
   * using memory = openMemory(1 << 20);
   * await using device = await attach(memory, { partscan: true });
   * for (const { path, size } of await device.partitions()) {
   *   console.log(path, size);
   * }
   * ```
   */
  async partitions(options: PartitionsOptions = {}): Promise<Partition[]> {
    const waiting = checkPartitionsOptions(options);
    const { showPartitions } = await import("./partitions/show.ts");
    return await showPartitions(this.#loop, waiting, this.#nodes);
  }

  /**
   * Detaches, and resolves when the device is free.
   *
   * Everything that was written through the device is in the file then, also what
   * others wrote meanwhile. While others have it open the kernel keeps it, and
   * detaches when they let go. After {@linkcode LoopBusyError}, an abort or `lazy`
   * the descriptor is closed, and calling it again waits again. Detached already, it
   * resolves at once.
   *
   * @throws {LoopBusyError} `EBUSY` when others do not let go in time
   * @throws {LoopError} `EIO`, `ENOSPC` when writing back failed, with the device
   * detached; `EROFS` and others when a node that was made for it cannot be removed
   * @throws {StaleDeviceError} after `persist`, when the device is bound to something
   * else by now
   *
   * @example
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   *
   * using memory = openMemory(1 << 20);
   * const device = await attach(memory);
   * await device.detach();
   * ```
   */
  async detach(options: DetachOptions = {}): Promise<void> {
    const waiting = checkDetachOptions(options);
    if (this.#state === "detached") return this.#removeNodes();
    if (this.#released === undefined && this.#loop.fd === -1) {
      return await this.#detachByReference(options);
    }
    const released = await (this.#released ??= this.#release());
    if (!waiting.lazy) await untilFree(released, waiting);
    if (!waiting.lazy || isFree(released)) this.#state = "detached";
    if (released.failure !== undefined && !this.#reported) {
      this.#reported = true;
      throw released.failure;
    }
  }

  async #release(): Promise<Released> {
    const left = this.#nodes?.removeAll();
    try {
      const released = await release(this.#loop);
      return { ...released, failure: released.failure ?? left };
    } catch (error) {
      // The kernel would not let it go; our descriptor is closed all the same.
      this.#released = undefined;
      this.#state = "persisted";
      throw error;
    }
  }

  /** Mostly they have gone; what could not be removed is tried again. */
  #removeNodes(): void {
    const left = this.#nodes?.removeAll();
    if (left !== undefined) throw left;
  }

  /** Once the descriptor is closed, the disk sequence number tells whether it is still our binding. */
  async #detachByReference(options: DetachOptions): Promise<void> {
    const { minor, path, diskSequence } = this;
    this.#state = "persisted"; // disposal neither waits nor throws a second time
    const { backing } = this.#loop;
    try {
      await detachBinding({ minor, diskSequence }, backing, options);
    } catch (error) {
      // Unbound, or nearly so, or removed. What sysfs says is the truth.
      const known = error instanceof LoopError &&
        [ENXIO, ENODEV, ENOENT].includes(error.errno);
      if (!known) throw error;
      const binding = { minor, path, diskSequence: diskSequence || undefined };
      if (error.errno === ENXIO) {
        await untilFree({ ...binding, failure: undefined, partscan: true }, {
          ...checkDetachOptions(options),
          ...(options.lazy && { timeout: 0 }),
        });
      } else if (!isFree(binding)) throw error;
    }
    if (!options.lazy || !isBound(minor)) this.#state = "detached";
    this.#removeNodes();
  }

  /**
   * Leaves the device to live on without this process: writes back, clears
   * `autoclear` (about 16 ms, from Linux 6.19 on refused when it is mounted: call it
   * before mounting) and closes the descriptor. `detach` still works, by the disk
   * sequence number; disposal does nothing any more.
   *
   * @returns The path of the device.
   * @throws {LoopError} `EIO`, `ENOSPC` when writing back failed, and the device stays
   * attached as it is; `EBUSY` as above
   *
   * @example
   * ```ts
   * import { attach, detach, openMemory } from "@loopdev/loopdev";
   *
   * using memory = openMemory(1 << 20);
   * const path = (await attach(memory)).persist();
   * await detach(path);
   * ```
   */
  persist(): string {
    const { path } = this;
    if (this.#state === "persisted") return path;
    if (this.#released !== undefined) {
      throw new LoopError(`Cannot persist ${quote(path)}`, {
        errno: EBADF,
        operation: "persist",
        path,
        hint: "it was detached",
      });
    }
    const { autoclear } = decodeFlags(this.#loop.getInfo().flags);
    check(writeBack(this.#loop.fd), () => ({
      action: `Cannot write back ${quote(path)}`,
      operation: "sync_file_range",
      path,
    }));
    if (autoclear) this.#loop.setStatus({ autoclear: false });
    this.#state = "persisted";
    this.#nodes?.close();
    this.#loop.close();
    return path;
  }

  /** The same as {@linkcode Attachment.detach}; nothing after `persist`, and no second waiting after one that failed. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === "persisted") return;
    if (this.#released === undefined) return await this.detach();
    await this.#released.catch(() => {}); // reported by the detach() that began it
  }
}

/** A directory with the node of a device that has none in `/dev`. It may have appeared there meanwhile. */
function privateNodes(loop: Loop): NodeDirectory | undefined {
  const rdevice = rdeviceOf(loop);
  return hasNode(loop.name, rdevice)
    ? undefined
    : NodeDirectory.makePrivate(loop.name, rdevice);
}

function rdeviceOf({ fd, path }: Loop): number {
  return checkStat(statOf(fd), `Cannot examine ${quote(path)}`, path).rdevice;
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

/** A device that a file was attached to by us. */
class BoundLoop extends Loop {
  /** The disk sequence number of the binding; 0 before Linux 5.15. */
  diskSequence = 0;
  /** What is bound. */
  backing: BackingFile | undefined;
  /** `/dev` has none: it was opened through one that has gone. */
  readonly isWithoutNode: boolean;

  constructor(minor: number, options: InternalOptions) {
    super(minor, options);
    this.isWithoutNode = options[NODE] !== undefined;
  }

  /** Notes what tells this binding from any other, once the descriptor is closed. */
  remember(backing: BackingFile): void {
    this.backing = backing;
    this.diskSequence = sequenceOf(this) ?? 0;
  }

  override changeFd(fd: number): void {
    super.changeFd(fd);
    this.backing = this.getInfo();
    if (this.diskSequence !== 0) this.diskSequence = this.getDiskSequence();
  }
}
