/** An attached file, for as long as it is not disposed of. */
import type { LoopDevice } from "./kernel/attached_devices.ts";
import { decodeFlags } from "./kernel/configuration.ts";
import { BoundLoop } from "./attaching/bound_loop.ts";
import { retryWhileHeld } from "./attaching/retry_while_held.ts";
import {
  closeInBackground,
  hasLargeCache,
  isFree,
  isFreeNow,
  release,
  type Released,
  reportWriteBack,
  writeBackInBackground,
} from "./attaching/release.ts";
import {
  checkDetachOptions,
  detachBinding,
  type DetachOptions,
  refuseUsed,
  type ResolvedDetachOptions,
  untilFree,
} from "./detach.ts";
import { readDevice } from "./kernel/attached_devices.ts";
import { LoopBusyError, LoopError, quote, unwrap } from "./errors.ts";
import { FileDescriptor } from "./kernel/file_descriptor.ts";
import { exactSize, type Loop } from "./kernel/loop.ts";
import { bindingOf, diskSequenceOf, isBound } from "./kernel/loop_sysfs.ts";
import type { NodeDirectory } from "./kernel/node_directory.ts";
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
import { BRIEF_USE, DEFAULT_TIMEOUT } from "./waiting.ts";

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
  readonly #nodes: NodeDirectory | undefined;
  readonly #timeout: number;
  #state: State = { is: "attached" };
  /** Whether partitions were added that the kernel does not remove at the detach. */
  #hasOwnPartitions = false;
  /** What is being read and written. */
  readonly #transfers = new Set<Promise<number>>();

  /**
   * Made by {@linkcode attach}.
   *
   * @param loop The open device.
   */
  constructor(
    loop: Loop,
    { nodes, timeout = DEFAULT_TIMEOUT }: Internals = {},
  ) {
    if (!(loop instanceof BoundLoop)) {
      throw new TypeError("Cannot make an Attachment: attach() makes them");
    }
    this.loop = this.#loop = loop;
    this.#nodes = nodes;
    this.#timeout = timeout;
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

  /** The size in bytes, read from the device at each access. Above 2^53-1 it is given as that. */
  get size(): number {
    const size = exactSize(this.#loop);
    return Number(size < MAX_SAFE ? size : MAX_SAFE);
  }

  /** The logical block size in bytes, read from the device at each access. */
  get blockSize(): number {
    return this.#loop.getBlockSize();
  }

  /**
   * Makes the partitions of the device appear, and tells what they are: as
   * {@linkcode partitions}.
   *
   * @param options How long to wait for nodes.
   * @returns The partitions, by number.
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
    const { showTable } = await import("./partitions/appear.ts");
    const { partitions } = await showTable(this.#loop, waiting, this.#nodes);
    this.#hasOwnPartitions = !this.#loop.getStatus().partscan;
    return partitions;
  }

  /**
   * Mounts the file system on the device, or on one of its partitions: as {@linkcode mount}.
   * Unmount it before the device is detached.
   *
   * @param options How to mount it.
   * @returns The mounted file system, which is unmounted when it is disposed of.
   * @throws {LoopError} as {@linkcode mount}
   *
   * @example A device and its file system, in the right order
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
    const disk = { loop: this.#loop, path, nodes: this.#nodes };
    return new Mount(await mountAttached(disk, options));
  }

  /**
   * Reads bytes of the device through its page cache, while the event loop goes on.
   * `Deno.open` would want `--allow-all` for a device.
   *
   * @param buffer Where the bytes go; as many are read as it has room for. It must not be
   * transferred or resized until the promise is settled.
   * @param position Where to begin, in bytes.
   * @returns How many bytes were read: fewer than asked for only at the end of the device.
   * @throws {LoopError} `EIO` when the backing file cannot be read
   * @throws {RangeError} for a negative or fractional position
   *
   * @example
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
   * Writes bytes to the device through its page cache, while the event loop goes on.
   * They are in the backing file when the device is detached, or persisted.
   *
   * @param bytes What is written. It must not change until the promise is settled.
   * @param position Where to begin, in bytes.
   * @returns How many bytes were written: fewer than given only at the end of the device.
   * @throws {LoopError} `ENOSPC` past the end of the device; `EPERM`, `EBADF` when it is
   * read-only
   * @throws {RangeError} for a negative or fractional position
   *
   * @example
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
    // The number of a descriptor that is closed meanwhile may soon be a stranger's file.
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

  /** Resolves when nothing is read or written any more: descriptors of ours keep the device. */
  async #settleTransfers(): Promise<void> {
    while (this.#transfers.size > 0) {
      await Promise.allSettled([...this.#transfers]);
    }
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
   * @param options How long to wait for others.
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
    if (this.#state.is === "attached" && this.#loop.fd !== -1) {
      if (waiting.ifUnused) {
        await this.#settleTransfers(); // they are no use by others
        await refuseUsed(this.#loop);
      }
    }
    // Asked once more: somebody may have called it meanwhile.
    if (this.#state.is === "attached" && this.#loop.fd !== -1) {
      this.#state = { is: "released", released: this.#release() };
    }
    switch (this.#state.is) {
      case "detached":
        return this.#removeNodes();
      case "released":
        return await this.#detachReleased(this.#state, waiting);
      default: // whoever called closed the descriptor, by persist() or loop.close()
        return await this.#detachByReference(options);
    }
  }

  async #release(): Promise<Released> {
    const left = this.#nodes?.removeAll();
    try {
      if (this.#transfers.size > 0) await this.#settleTransfers();
      if (this.#hasOwnPartitions) this.#removePartitions();
      const released = await release(
        this.#loop,
        this.#loop.diskSequence,
      );
      return { ...released, failure: released.failure ?? left };
    } catch (error) {
      // The kernel refused; our descriptor is closed all the same.
      this.#state = { is: "persisted" };
      throw error;
    }
  }

  /** Removes them unless one is in use: then whoever binds the device next removes them. */
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
    if (!waiting.lazy || isFree(released)) this.#state = { is: "detached" };
    if (released.failure === undefined || state.isReported) return;
    state.isReported = true;
    throw released.failure;
  }

  /** Once the descriptor is closed, the disk sequence number tells whether it is still our binding. */
  async #detachByReference(options: DetachOptions): Promise<void> {
    const { minor, path, diskSequence } = this;
    await this.#settleTransfers();
    this.#state = { is: "persisted" }; // disposal neither waits nor throws a second time
    const { backing } = this.#loop;
    try {
      await detachBinding({ minor, diskSequence }, backing, options);
    } catch (error) {
      // Unbound, or nearly so, or removed. What sysfs says is the truth.
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

  /** Mostly they have gone; what could not be removed is tried again. */
  #removeNodes(): void {
    const left = this.#nodes?.removeAll();
    if (left !== undefined) throw left;
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
   * const path = await (await attach(memory)).persist();
   * await detach(path);
   * ```
   */
  async persist(): Promise<string> {
    const { path } = this;
    if (this.#isPersisted) return path;
    this.#checkAttached(`persist ${quote(path)}`);
    if (this.#transfers.size > 0) await this.#settleTransfers();
    return await retryWhileHeld(() => this.#tryPersist(), {
      timeout: BRIEF_USE,
      signal: undefined,
    });
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
    if (this.#isPersisted) return path; // by another call, while this one was writing back
    this.#checkAttached(`persist ${quote(path)}`);
    reportWriteBack(this.#loop, flush);
    const { autoclear } = decodeFlags(this.#loop.getInfo().flags);
    if (autoclear) this.#loop.setStatus({ autoclear: false });
    this.#state = { is: "persisted" };
    this.#nodes?.close();
    this.#loop.close();
    return path;
  }

  /** Whether the device has our binding, by its disk sequence number, or before Linux 5.15 by the binding itself. */
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
        ? "it was persisted: open it anew"
        : "it was detached",
    });
  }

  /**
   * The path of the device, for use in texts and command lines.
   *
   * @returns The path.
   */
  toString(): string {
    return this.path;
  }

  /**
   * The device as {@linkcode list} has it, while it is attached; then its names and its disk sequence number.
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
      // a JSON without it is better than none
    }
    return { minor, name, path, diskSequence };
  }

  /** What `console.log` shows. */
  [Symbol.for("Deno.customInspect")](
    inspect: typeof Deno.inspect,
    options: Deno.InspectOptions,
  ): string {
    return `Attachment ${inspect(this.toJSON(), options)}`;
  }

  /** Throws a write-back error of a detach() that was aborted before it could tell. */
  async #reportFailure(state: ReleasedState): Promise<void> {
    const released = await state.released.catch(() => undefined); // it was told
    if (released?.failure === undefined) return;
    if (state.isReported || state.isTold) return;
    state.isReported = true;
    throw released.failure;
  }

  /** Detaches as {@linkcode Attachment.detach} does, within `detachTimeout`; nothing after `persist`, and no second waiting after one that failed. */
  async [Symbol.asyncDispose](): Promise<void> {
    switch (this.#state.is) {
      case "attached":
        return await this.detach({ timeout: this.#timeout });
      case "released":
        return await this.#reportFailure(this.#state);
    }
  }
}

/** What {@linkcode attach} knows beside the device. */
interface Internals {
  readonly nodes?: NodeDirectory | undefined;
  readonly timeout?: number;
}

/** The device is to be freed: written back, and the descriptor closed. */
interface ReleasedState {
  readonly is: "released";
  readonly released: Promise<Released>;
  /** Whether a failure was thrown already. */
  isReported?: boolean;
  /** Whether it was the cause of another error that was thrown. */
  isTold?: boolean;
}

type State =
  | { readonly is: "attached" }
  | ReleasedState
  | { readonly is: "persisted" }
  | { readonly is: "detached" };

const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);
