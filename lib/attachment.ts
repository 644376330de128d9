/** A file attached to a loop device, until it is disposed of. */
import type { LoopDevice } from "./kernel/attached_devices.ts";
import { decodeFlags } from "./kernel/configuration.ts";
import { BoundLoop } from "./attaching/bound_loop.ts";
import {
  closeInBackground,
  hasLargeCache,
  isFree,
  isFreeNow,
  release,
  type Released,
  reportWriteBack,
  retryWhileHeld,
  writeBackInBackground,
} from "./attaching/release.ts";
import {
  checkDetachOptions,
  detachBinding,
  type DetachOptions,
  lacksNodes,
  refuseUsed,
  removeLeftNodes,
  type ResolvedDetachOptions,
  untilFree,
} from "./detach.ts";
import { readDevice } from "./kernel/attached_devices.ts";
import { LoopBusyError, LoopError, quote, unwrap } from "./errors.ts";
import { FileDescriptor } from "./kernel/file_descriptor.ts";
import { currentInfo, exactSize, type Loop } from "./kernel/loop.ts";
import { bindingOf, diskSequenceOf, isBound } from "./kernel/loop_sysfs.ts";
import type { NodeDirectory, NodeOwner } from "./kernel/node_directory.ts";
import { removePartitions } from "./kernel/remove_partitions.ts";
import {
  checkTransfer,
  READ,
  transferAsync,
  WRITE,
} from "./kernel/transfer.ts";
import { Mount } from "./mount_handle.ts";
import type { MountOptions } from "./mounting/options.ts";
import type { Partition } from "./partitions/partition.ts";
import {
  checkPartitionsOptions,
  type PartitionsOptions,
} from "./partitions/partitions.ts";
import { EBADF, ENODEV, ENOENT, ENXIO } from "./sys/errno.ts";
import { duplicate, writeBack } from "./sys/libc.ts";
import { DEFAULT_TIMEOUT } from "./waiting.ts";

/**
 * A file attached to a loop device by {@linkcode attach}, until it is disposed of.
 *
 * It holds the device open, so that the kernel cannot give it to another process.
 * `detach` and disposal detach it. After that, `minor`, `path` and `diskSequence` stay
 * readable; everything else throws a {@linkcode LoopError} with code `EBADF`.
 *
 * @example Detach explicitly, with a time limit
 * ```ts
 * import { attach, LoopError, openMemory } from "@loopdev/loopdev";
 * import { assertRejects } from "@std/assert";
 *
 * using memory = openMemory(1 << 20);
 * const device = await attach(memory);
 * await device.detach({ timeout: 1000 });
 * await assertRejects(
 *   () => device.read(new Uint8Array(512), 0),
 *   LoopError,
 *   "EBADF",
 * );
 * ```
 */
export class Attachment implements AsyncDisposable {
  /** The open device. Closing it detaches the file if `autoclear` is set. */
  readonly loop: Loop;
  readonly #loop: BoundLoop;
  readonly #own: NodeOwner;
  readonly #path: string;
  readonly #timeout: number;
  #state: State = { is: "attached" };
  /** `true` if other processes may have created private nodes. */
  #mayLeaveNodes = false;
  /** Reads and writes in progress. */
  readonly #transfers = new Set<Promise<number>>();

  /**
   * Constructed by {@linkcode attach} only.
   *
   * @param loop The open device.
   */
  constructor(
    loop: Loop,
    { nodes, timeout = DEFAULT_TIMEOUT }: Internals = {},
  ) {
    if (!(loop instanceof BoundLoop)) {
      throw new TypeError("Cannot construct Attachment: use attach()");
    }
    this.loop = this.#loop = loop;
    this.#own = { nodes, isDetached: false, hasPartitions: false };
    this.#path = nodes?.pathOf(loop.name) ?? loop.path;
    this.#timeout = timeout;
  }

  /**
   * A path that opens the device: `/dev/loop3`, or a path in the directory of its
   * nodes.
   */
  get path(): string {
    return this.#path;
  }

  /** The number of the device: 3 for `/dev/loop3`. */
  get minor(): number {
    return this.#loop.minor;
  }

  /**
   * The disk sequence number of the binding; 0 before Linux 5.15. It rises when the
   * backing file is exchanged.
   */
  get diskSequence(): number {
    return this.#loop.diskSequence;
  }

  /**
   * The size in bytes, read from the device at each access. Clamped to
   * `Number.MAX_SAFE_INTEGER`.
   */
  get size(): number {
    const size = exactSize(this.#loop);
    return Number(size < MAX_SAFE ? size : MAX_SAFE);
  }

  /** The logical block size in bytes, read from the device at each access. */
  get blockSize(): number {
    return this.#loop.getBlockSize();
  }

  /**
   * Creates the partitions of the device and describes them, like
   * {@linkcode partitions}.
   *
   * @param options Limits for waiting for the nodes.
   * @returns The partitions, by number.
   * @throws {LoopError} If the table is damaged (`EUCLEAN`) or a node does not appear
   * in time (`ETIMEDOUT`).
   *
   * @example List the partitions of an attached image
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const disk = new Uint8Array(4 << 20);
   * disk.set([0x55, 0xaa], 510); // an MBR
   * disk[450] = 0x83; // with one Linux partition
   * new DataView(disk.buffer).setUint32(454, 2048, true); // from sector 2048
   * new DataView(disk.buffer).setUint32(458, 4096, true); // of 4096 sectors
   * using memory = openMemory(disk);
   * await using device = await attach(memory, { partscan: true });
   * const [partition] = await device.partitions();
   * assertEquals(partition?.path, `${device.path}p1`);
   * ```
   */
  async partitions(options: PartitionsOptions = {}): Promise<Partition[]> {
    const waiting = checkPartitionsOptions(options);
    const { showTable } = await import("./partitions/appear.ts");
    const shown = await showTable(this.#loop, waiting, this.#own);
    // Those that another call has added are removed with ours.
    this.#own.hasPartitions = true;
    return shown.partitions;
  }

  /**
   * Mounts the file system on the device or on one of its partitions, like
   * {@linkcode mount}. Unmount it before the device is detached.
   *
   * @param options Options for mounting.
   * @returns The mounted file system, which is unmounted when it is disposed of.
   * @throws {LoopError} If it cannot be mounted, as for {@linkcode mount}, or the device
   * was detached (`EBADF`).
   *
   * @example Mount the file system of an attached image
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   *
   * using memory = openMemory(16 << 20);
   * await using device = await attach(memory);
   * await new Deno.Command("mkfs.ext4", { args: ["-q", device.path] }).output();
   * await using mounted = await device.mount();
   * await Deno.writeTextFile(`${mounted.path}/hello`, "hello");
   * ```
   */
  async mount(options: MountOptions = {}): Promise<Mount> {
    const { mountAttached } = await import("./mount_disk.ts");
    this.#checkAttached(`mount ${quote(this.path)}`);
    const { path } = this;
    const disk = { loop: this.#loop, path, owner: this.#own };
    return new Mount(await mountAttached(disk, options));
  }

  /**
   * Reads bytes of the device through its page cache, without blocking the event loop.
   * Reading a device with `Deno.open` requires `--allow-all`.
   *
   * @param buffer The buffer to fill. It must not be transferred or resized until the
   * promise settles.
   * @param position The offset on the device to start at, in bytes.
   * @returns The number of bytes read, which is less than requested only at the end of
   * the device.
   * @throws {LoopError} If the backing file cannot be read (`EIO`) or the device was
   * detached (`EBADF`).
   * @throws {RangeError} If the position is negative or fractional.
   *
   * @example Read the first sector
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using memory = openMemory(new Uint8Array(4096).fill(7));
   * await using device = await attach(memory);
   * const sector = new Uint8Array(512);
   * assertEquals(await device.read(sector, 0), 512);
   * assertEquals(sector[511], 7);
   * ```
   */
  async read(buffer: Uint8Array, position: number): Promise<number> {
    return await this.#transfer(READ, buffer, position);
  }

  /**
   * Writes bytes to the device through its page cache, without blocking the event loop.
   * They are in the backing file once the device is detached or persisted.
   *
   * @param bytes The bytes to write. They must not change until the promise settles.
   * @param position The offset on the device to start at, in bytes.
   * @returns The number of bytes written, which is less than requested only at the end
   * of the device.
   * @throws {LoopError} If the position is past the end of the device (`ENOSPC`), or
   * the device is read-only (`EPERM`, `EBADF`) or was detached (`EBADF`).
   * @throws {RangeError} If the position is negative or fractional.
   *
   * @example Write the second sector
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using memory = openMemory(4096);
   * await using device = await attach(memory);
   * assertEquals(await device.write(new Uint8Array(512).fill(1), 512), 512);
   * ```
   */
  async write(bytes: Uint8Array, position: number): Promise<number> {
    return await this.#transfer(WRITE, bytes, position);
  }

  async #transfer(
    direction: typeof READ | typeof WRITE,
    bytes: Uint8Array,
    position: number,
  ): Promise<number> {
    checkTransfer(bytes, position);
    const { path } = this;
    this.#checkAttached(`${direction.verb} ${quote(path)}`);
    // A descriptor that is closed during the call may be reused for another file, so
    // duplicate it.
    const own = new FileDescriptor(
      unwrap(duplicate(this.#loop.fd), () => ({
        action: `Cannot ${direction.verb} ${quote(path)}`,
        operation: "fcntl",
        path,
      })),
    );
    const work = { fd: own.fd, path, bytes, position };
    const transfer = transferAsync(direction, work)
      .finally(() => {
        own.close();
        this.#transfers.delete(transfer);
      });
    this.#transfers.add(transfer);
    return await transfer;
  }

  /**
   * Resolves when no read or write is in progress, because their descriptors keep the
   * device open.
   */
  async #settleTransfers(): Promise<void> {
    while (this.#transfers.size > 0) {
      await Promise.allSettled([...this.#transfers]);
    }
  }

  /**
   * Detaches the device and resolves when it is free.
   *
   * By then, everything that was written through the device is in the file, including
   * what other processes wrote during the call. While another process has the device
   * open, the kernel keeps it attached, and detaches it at the last close. After a
   * {@linkcode LoopBusyError}, an abort or `lazy`, the descriptor is closed and a
   * further call waits again. If the device is already detached, resolves at once.
   *
   * @param options Limits for waiting for other processes.
   * @throws {LoopBusyError} If other processes do not close the device in time
   * (`EBUSY`).
   * @throws {LoopError} If writing back failed (`EIO`, `ENOSPC`) or a node that was
   * created for the device cannot be removed (`EROFS` and others). The device is
   * detached in both cases.
   * @throws {StaleDeviceError} If the device was persisted and is now bound to another
   * file.
   *
   * @example Detach a device before the end of its block
   * ```ts
   * import { attach, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * await Deno.truncate(path, 1 << 20);
   * const device = await attach(path);
   * await device.write(new Uint8Array(512).fill(1), 0);
   * await device.detach();
   * assertEquals((await Deno.readFile(path))[0], 1);
   * await Deno.remove(path);
   * ```
   */
  async detach(options: DetachOptions = {}): Promise<void> {
    const waiting = checkDetachOptions(options);
    if (this.#state.is === "attached" && this.#loop.fd !== -1) {
      if (waiting.ifUnused) {
        await this.#settleTransfers(); // our own transfers are not other users
        await refuseUsed(this.#loop, waiting.signal);
      }
    }
    // Checked again: another call of detach() may have come first.
    if (this.#state.is === "attached" && this.#loop.fd !== -1) {
      this.#state = { is: "released", released: this.#release() };
    }
    switch (this.#state.is) {
      case "detached":
        return this.#removeNodes();
      case "released":
        return await this.#detachReleased(this.#state, waiting);
      default: // the caller closed the descriptor, by persist() or loop.close()
        return await this.#detachByReference(options);
    }
  }

  async #release(): Promise<Released> {
    this.#own.isDetached = true;
    const left = this.#own.nodes?.removeAll();
    try {
      if (this.#transfers.size > 0) await this.#settleTransfers();
      const isScanned = this.#isScanned();
      this.#mayLeaveNodes = this.#lacksNodes(isScanned);
      // With partscan, the kernel removes them. If that is unknown, this does no harm.
      if (this.#own.hasPartitions && !isScanned) this.#removePartitions();
      const released = await release(
        this.#loop,
        this.#loop.diskSequence,
      );
      await this.#loop.backingClosed;
      return { ...released, failure: released.failure ?? left };
    } catch (error) {
      // The kernel refused, but the descriptor is closed nonetheless.
      this.#state = { is: "persisted" };
      throw error;
    }
  }

  get #flags(): ReturnType<typeof decodeFlags> {
    return decodeFlags(currentInfo(this.#loop).flags);
  }

  /** Returns whether partscan is on. `undefined`, if unknown, must not prevent detaching. */
  #isScanned(): boolean | undefined {
    try {
      return this.#flags.partscan;
    } catch (error) {
      if (!(error instanceof LoopError)) throw error;
      return undefined;
    }
  }

  /** Returns `true` if other processes may have created private nodes. */
  #lacksNodes(isScanned: boolean | undefined): boolean {
    if (this.#loop.isWithoutNode || isScanned === undefined) return true;
    return (isScanned || this.#own.hasPartitions) && lacksNodes(this.minor);
  }

  /**
   * Removes the partitions unless one is in use; the next process that binds the device
   * removes those.
   */
  #removePartitions(): void {
    try {
      removePartitions(this.#loop, "detach");
    } catch (error) {
      if (!(error instanceof LoopError)) throw error;
    }
  }

  async #detachReleased(
    state: ReleasedState,
    waiting: ResolvedDetachOptions,
  ): Promise<void> {
    const released = await state.released;
    if (!waiting.lazy && !isFreeNow(released)) {
      await untilFree(released, waiting).catch((error) => {
        if (error instanceof LoopBusyError) state.isTold = true;
        throw error;
      });
    }
    if (!waiting.lazy || isFree(released)) {
      this.#state = { is: "detached" };
      if (this.#mayLeaveNodes) await removeLeftNodes(this.minor);
    }
    if (released.failure === undefined || state.isReported) return;
    state.isReported = true;
    throw released.failure;
  }

  /**
   * Detaches a device whose descriptor is closed, if its disk sequence number shows
   * that it is still the same binding.
   */
  async #detachByReference(options: DetachOptions): Promise<void> {
    const { minor, path, diskSequence } = this;
    await this.#settleTransfers();
    this.#state = { is: "persisted" }; // disposal neither waits nor throws a second time
    const { backing } = this.#loop;
    try {
      await detachBinding({ minor, diskSequence }, backing, options);
    } catch (error) {
      // The device was unbound or removed, or is about to be: check in sysfs.
      const known = error instanceof LoopError &&
        [ENXIO, ENODEV, ENOENT].includes(error.errno);
      if (!known) throw error;
      const binding = this.#isStillOurs ? bindingOf(minor) : undefined;
      const device = { minor, path, binding, diskSequence };
      if (error.errno === ENXIO) {
        await untilFree({ ...device, failure: undefined, partscan: true }, {
          ...checkDetachOptions(options),
          ...(options.lazy && { timeout: 0 }),
        });
      } else if (!isFree(device)) throw error;
    }
    if (!options.lazy || !isBound(minor)) this.#state = { is: "detached" };
    this.#removeNodes();
  }

  /** Removes the nodes that could not be removed before, if any. */
  #removeNodes(): void {
    const left = this.#own.nodes?.removeAll();
    if (left !== undefined) throw left;
  }

  /**
   * Leaves the device attached when this process ends: writes back, clears `autoclear`
   * and closes the descriptor. `detach` still works, by the disk sequence number;
   * disposal no longer does anything.
   *
   * Takes about 16 ms. From Linux 6.19 on, a mounted device is refused, so call it
   * before mounting.
   *
   * @returns The path of the device.
   * @throws {LoopError} If writing back failed (`EIO`, `ENOSPC`) or the device is
   * mounted (`EBUSY`). The device stays attached as it is.
   *
   * @example Leave a device attached, and detach it later
   * ```ts
   * import { attach, detach, inspect, openMemory } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using memory = openMemory(1 << 20);
   * const path = await (await attach(memory)).persist();
   * assertEquals(inspect(path)?.autoclear, false);
   * await detach(path);
   * ```
   */
  async persist(): Promise<string> {
    const { path } = this;
    if (this.#isPersisted) return path;
    this.#checkAttached(`persist ${quote(path)}`);
    if (this.#transfers.size > 0) await this.#settleTransfers();
    await retryWhileHeld(() => this.#tryPersist());
    await this.#loop.backingClosed;
    return path;
  }

  async #tryPersist(): Promise<string> {
    if (this.#isPersisted) return this.path;
    this.#checkAttached(`persist ${quote(this.path)}`);
    if (!hasLargeCache(this.#loop)) return this.#persist(writeBack);
    const flush = await writeBackInBackground(this.#loop);
    await this.#settleTransfers();
    return await closeInBackground(this.#loop, () => this.#persist(flush));
  }

  #persist(flush: (fd: number) => number): string {
    const { path } = this;
    if (this.#isPersisted) return path; // persisted by another call during the write-back
    this.#checkAttached(`persist ${quote(path)}`);
    reportWriteBack(this.#loop, flush);
    if (this.#flags.autoclear) this.#loop.setStatus({ autoclear: false });
    this.#state = { is: "persisted" };
    this.#own.nodes?.close();
    this.#loop.close();
    return path;
  }

  /**
   * `true` if the device still has our binding, by its disk sequence number or, before
   * Linux 5.15, by the inode of the binding.
   */
  get #isStillOurs(): boolean {
    const { minor, diskSequence, backing } = this.#loop;
    return diskSequence === 0
      ? backing?.binding === bindingOf(minor)
      : diskSequence === diskSequenceOf(minor);
  }

  get #isPersisted(): boolean {
    return this.#state.is === "persisted";
  }

  #checkAttached(what: string): void {
    if (this.#state.is === "attached" && this.#loop.fd !== -1) return;
    const { path } = this;
    throw new LoopError(`Cannot ${what}`, {
      errno: EBADF,
      operation: what.split(" ", 1)[0]!,
      path,
      hint: this.#isPersisted
        ? "it was persisted: open the device again"
        : "it was detached",
    });
  }

  /**
   * Returns the path of the device, so that an attachment can be used in texts and
   * command lines.
   *
   * @returns The path.
   */
  toString(): string {
    return this.path;
  }

  /**
   * Returns the device as {@linkcode list} does while it is attached, otherwise only
   * its names and its disk sequence number.
   *
   * @returns Plain data.
   */
  toJSON(): Partial<LoopDevice> {
    const { minor, path, diskSequence } = this;
    const { name } = this.#loop;
    try {
      const device = readDevice(minor)?.device;
      const isOurs = device !== undefined && this.#state.is !== "detached" &&
        device.diskSequence === diskSequence && this.#isStillOurs;
      if (isOurs) return { ...device, path };
    } catch {
      // report what is known
    }
    return { minor, name, path, diskSequence };
  }

  /** Formats the attachment for `console.log`. */
  [Symbol.for("Deno.customInspect")](
    inspect: typeof Deno.inspect,
    options: Deno.InspectOptions,
  ): string {
    return `Attachment ${inspect(this.toJSON(), options)}`;
  }

  /**
   * Throws the write-back error of a detach() that was aborted before it could report
   * it.
   */
  async #reportFailure(state: ReleasedState): Promise<void> {
    const released = await state.released.catch(() => undefined); // already reported
    if (released?.failure === undefined) return;
    if (state.isReported || state.isTold) return;
    state.isReported = true;
    throw released.failure;
  }

  /**
   * Detaches the device, like {@linkcode Attachment.detach}, within `detachTimeout`.
   * Does nothing after `persist()` or after a `detach()` that failed.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    switch (this.#state.is) {
      case "attached":
        return await this.detach({ timeout: this.#timeout });
      case "released":
        return await this.#reportFailure(this.#state);
    }
  }
}

/** Internal arguments of {@linkcode Attachment}. */
interface Internals {
  readonly nodes?: NodeDirectory | undefined;
  readonly timeout?: number;
}

/** State after the device was written back and its descriptor closed. */
interface ReleasedState {
  readonly is: "released";
  readonly released: Promise<Released>;
  /** `true` if the failure was already thrown. */
  isReported?: boolean;
  /** `true` if the failure was the cause of another error that was thrown. */
  isTold?: boolean;
}

type State =
  | { readonly is: "attached" }
  | ReleasedState
  | { readonly is: "persisted" }
  | { readonly is: "detached" };

const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);
