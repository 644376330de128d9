/** Attaching: a file becomes a device that is what was asked for, or nothing stays. */
import {
  checkDescriptor,
  checkMinor,
  checkOptions,
  checkSignal,
} from "./arguments.ts";
import {
  type BackingFile,
  checkDetachOptions,
  detachBinding,
  type DetachOptions,
  isFree,
  release,
  type Released,
  releaseNow,
  sequenceOf,
  sleep,
  untilFree,
} from "./detach.ts";
import { check, LoopError, quote } from "./errors.ts";
import {
  checkBackingFile,
  checkStat,
  FileDescriptor,
  openFile,
} from "./file_descriptor.ts";
import {
  bind,
  CONFIGURE_OPTIONS,
  type ConfigureOptions,
  decodeFlags,
  encodeOptions,
  Loop,
} from "./loop.ts";
import { LoopControl } from "./loop_control.ts";
import { lockRange, refuseOverlap } from "./overlap.ts";
import { removeStalePartitions } from "./stale_partitions.ts";
import {
  deviceNumberOf,
  hasSysfs,
  isBound,
  loopNumbers,
} from "./loop_sysfs.ts";
import { BLKGETSIZE64, BLKROSET } from "./sys/blk_uapi.ts";
import {
  EACCES,
  EAGAIN,
  EBADF,
  EBUSY,
  EEXIST,
  EINVAL,
  EIO,
  ENODEV,
  ENOENT,
  ENXIO,
  EPERM,
  EROFS,
} from "./sys/errno.ts";
import {
  AT_FDCWD,
  cString,
  directIoAlignment,
  ioctlPointer,
  O_ACCMODE,
  O_DIRECT,
  O_PATH,
  O_RDONLY,
  O_WRONLY,
  openAt,
  openFlags,
  S_IFBLK,
  S_IFMT,
  type Stat,
  statOf,
  writeBack,
} from "./sys/libc.ts";
import type { LoopConfig } from "./sys/loop_uapi.ts";

/** How {@linkcode attach} attaches. Sizes and offsets are bytes. */
export interface AttachOptions extends ConfigureOptions {
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
   *
   * @default {"allow"}
   */
  overlap?: "allow" | "refuse" | undefined;
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
  checkOptions(options, [...CONFIGURE_OPTIONS, "minor", "overlap", "signal"]);
  const signal = checkSignal(options.signal);
  const minor = options.minor === undefined
    ? undefined
    : checkMinor(options.minor);
  const refusesOverlap = checkOverlap(options.overlap) === "refuse";
  const wanted = { ...options, autoclear: options.autoclear ?? true };
  const config = encodeOptions(wanted);
  signal?.throwIfAborted();

  const readOnly = options.readOnly ?? false;
  using backing = openBacking(file, { readOnly, refusesOverlap });
  const claim = {
    ...backing.description,
    start: config.info.offset,
    length: config.info.sizelimit,
    readOnly,
  };
  if (refusesOverlap) {
    lockRange(claim);
    refuseOverlap(claim, undefined);
  }
  config.fd = backing.fd;
  const tryDevice = (minor: number): BoundLoop => {
    const loop = new BoundLoop(minor, { readOnly });
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
    verify(loop, wanted, config, backing);
    // Who does not lock may have attached it since we looked.
    if (refusesOverlap) refuseOverlap(claim, loop);
    return new Attachment(loop);
  } catch (error) {
    // Ours beyond doubt: this descriptor has been open since it was bound.
    releaseNow(loop);
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

  /** Made by {@linkcode attach}. */
  constructor(loop: Loop) {
    if (!(loop instanceof BoundLoop)) {
      throw new TypeError("Cannot make an Attachment: attach() makes them");
    }
    this.loop = this.#loop = loop;
  }

  /** The path of the device: `/dev/loop3`. */
  get path(): string {
    return this.#loop.path;
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
   * detached
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
    if (this.#state === "detached") return;
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
    try {
      return await release(this.#loop);
    } catch (error) {
      // The kernel would not let it go; our descriptor is closed all the same.
      this.#released = undefined;
      this.#state = "persisted";
      throw error;
    }
  }

  /** Once the descriptor is closed, the disk sequence number tells whether it is still our binding. */
  async #detachByReference(options: DetachOptions): Promise<void> {
    const { minor, diskSequence } = this;
    if (isBound(minor) || !hasSysfs()) {
      try {
        await detachBinding(
          { minor, diskSequence },
          this.#loop.backing,
          options,
        );
      } catch (error) {
        const free = error instanceof LoopError && error.errno === ENXIO;
        if (!free) throw error;
      }
    }
    if (!options.lazy || !isBound(minor)) this.#state = "detached";
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

/** A device that a file was attached to by us. */
class BoundLoop extends Loop {
  /** The disk sequence number of the binding; 0 before Linux 5.15. */
  diskSequence = 0;
  /** What is bound. */
  backing: BackingFile | undefined;

  /** Notes what tells this binding from any other, once the descriptor is closed. */
  remember({ device, inode }: BackingFile): void {
    this.backing = { device, inode };
    this.diskSequence = sequenceOf(this) ?? 0;
  }

  override changeFd(fd: number): void {
    super.changeFd(fd);
    this.remember(this.getInfo());
  }
}

/** The backing file of an attachment to be. */
class Backing implements Disposable {
  readonly #owned: FileDescriptor | undefined;
  readonly fd: number;
  /** For messages. */
  readonly name: string;
  readonly stat: Stat;
  /** How large it was when it was opened, in bytes. */
  readonly size: bigint;

  constructor(fd: number, name: string, owned?: FileDescriptor) {
    this.fd = fd;
    this.name = name;
    this.#owned = owned;
    this.stat = this.#examine();
    checkBackingFile(this.stat, `Cannot attach ${name}`);
    this.size = this.#isBlockDevice ? this.#deviceSize() : this.stat.size;
  }

  /** How large it is now. */
  currentSize(): bigint {
    return this.#isBlockDevice ? this.#deviceSize() : this.#examine().size;
  }

  /** What {@linkcode lockRange} and {@linkcode refuseOverlap} want to know. */
  get description(): { fd: number; name: string; stat: Stat } {
    return { fd: this.fd, name: this.name, stat: this.stat };
  }

  /** Another open file description of the same file. */
  reopen(): Backing {
    const action = `Cannot open ${this.name} again`;
    const flags = check(openFlags(this.fd), () => ({
      action,
      operation: "fcntl",
    }));
    const descriptor = new FileDescriptor(
      check(
        openAt(
          AT_FDCWD,
          cString(`/proc/self/fd/${this.fd}`),
          flags & (O_ACCMODE | O_DIRECT),
        ),
        () => ({ action, operation: "open" }),
      ),
    );
    try {
      return new Backing(descriptor.fd, this.name, descriptor);
    } catch (error) {
      descriptor.close();
      throw error;
    }
  }

  get #isBlockDevice(): boolean {
    return (this.stat.mode & S_IFMT) === S_IFBLK;
  }

  #examine(): Stat {
    return checkStat(statOf(this.fd), `Cannot attach ${this.name}`);
  }

  #deviceSize(): bigint {
    const size = new BigUint64Array(1);
    check(
      ioctlPointer(this.fd, BLKGETSIZE64, new Uint8Array(size.buffer)),
      () => ({
        action: `Cannot find the size of ${this.name}`,
        operation: "BLKGETSIZE64",
      }),
    );
    return size[0]!;
  }

  [Symbol.dispose](): void {
    this.#owned?.close();
  }
}

function openBacking(
  file: string | URL | { readonly fd: number },
  { readOnly, refusesOverlap }: { readOnly: boolean; refusesOverlap: boolean },
): Backing {
  if (typeof file === "object" && file !== null && "fd" in file) {
    const backing = borrowed(checkDescriptor(file.fd, "fd"), readOnly);
    // A lock belongs to an open file description, and the caller's may live longer.
    return refusesOverlap ? backing.reopen() : backing;
  }
  const descriptor = readOnly
    ? openFile(file, { readOnly })
    : openForWriting(file);
  try {
    const name = file instanceof URL ? file.href : file;
    return new Backing(descriptor.fd, quote(name), descriptor);
  } catch (error) {
    descriptor.close();
    throw error;
  }
}

function openForWriting(file: string | URL): FileDescriptor {
  try {
    return openFile(file);
  } catch (error) {
    if (
      error instanceof LoopError &&
      [EACCES, EPERM, EROFS].includes(error.errno) && canRead(file)
    ) {
      throw new LoopError(`Cannot open ${quote(error.path!)} for writing`, {
        errno: error.errno,
        operation: error.operation,
        path: error.path,
        hint: "use readOnly: true to attach it for reading",
      });
    }
    throw error;
  }
}

function canRead(file: string | URL): boolean {
  try {
    openFile(file, { readOnly: true }).close();
    return true;
  } catch {
    return false;
  }
}

function borrowed(fd: number, readOnly: boolean): Backing {
  const backing = new Backing(fd, `descriptor ${fd}`);
  const action = `Cannot attach ${backing.name}`;
  const flags = check(openFlags(fd), () => ({ action, operation: "fcntl" }));
  const access = flags & O_ACCMODE;
  if ((flags & O_PATH) !== 0 || access === O_WRONLY) {
    throw new LoopError(action, {
      errno: EBADF,
      operation: "fcntl",
      hint: "it is not open for reading",
    });
  }
  if (access === O_RDONLY && !readOnly) {
    throw new LoopError(`${action} for writing`, {
      errno: EACCES,
      operation: "fcntl",
      hint:
        "it is open for reading only; use readOnly: true to attach it for reading",
    });
  }
  return backing;
}

/** What others can do to a device between its number being found and the file being bound. */
const RACES = [EBUSY, ENXIO, ENODEV, ENOENT, EACCES, EAGAIN];
const MAX_TRIES = 64;
const MAX_MILLISECONDS = 2000;
/** So often it is tried again at once. */
const EAGER_TRIES = 4;
const PAUSE_MILLISECONDS = 4;

/** Binds one particular device. */
function bindThis(
  tryDevice: (minor: number) => BoundLoop,
  minor: number,
): BoundLoop {
  if (deviceNumberOf(minor) === undefined) {
    using control = new LoopControl();
    try {
      control.add(minor);
    } catch (error) {
      const exists = error instanceof LoopError && error.errno === EEXIST;
      if (!exists) throw error;
    }
  }
  return tryDevice(minor);
}

/** Binds the first device that can be had. */
async function bindAny(
  tryDevice: (minor: number) => BoundLoop,
  file: string,
  signal: AbortSignal | undefined,
): Promise<BoundLoop> {
  using control = new LoopControl();
  const candidates = new Candidates(control);
  const deadline = performance.now() + MAX_MILLISECONDS;
  for (let tries = 1;; tries++) {
    const minor = candidates.next();
    try {
      return tryDevice(minor);
    } catch (error) {
      if (!(error instanceof LoopError) || !RACES.includes(error.errno)) {
        throw error;
      }
      candidates.failed(minor);
      if (tries >= MAX_TRIES || performance.now() >= deadline) {
        throw new LoopError(`Cannot attach ${file}`, {
          errno: error.errno,
          operation: error.operation,
          path: error.path,
          hint:
            `tried ${candidates.count} loop devices ${tries} times; the last answer: ${error.message}`,
        });
      }
    }
    if (tries >= EAGER_TRIES) {
      await sleep(1 + Math.random() * PAUSE_MILLISECONDS, signal);
    }
    signal?.throwIfAborted();
  }
}

/**
 * Which device to try next. `LOOP_CTL_GET_FREE` gives the lowest unbound one, and
 * gives it for ever when it cannot be bound: somebody holds it exclusively, or its
 * node is missing. So a number that has failed twice is set aside.
 */
class Candidates {
  static readonly #MAX_ADDED = 2;
  readonly #control: LoopControl;
  readonly #failures = new Map<number, number>();
  /** How many failures set a number aside. */
  #patience = 2;
  #added = 0;

  constructor(control: LoopControl) {
    this.#control = control;
  }

  /** How many devices were tried. */
  get count(): number {
    return this.#failures.size;
  }

  failed(minor: number): void {
    this.#failures.set(minor, (this.#failures.get(minor) ?? 0) + 1);
  }

  next(): number {
    const free = this.#control.getUnbound();
    if (this.#isEligible(free)) return free;
    const others = hasSysfs() ? loopNumbers() : [];
    const other = others.find((minor) =>
      this.#isEligible(minor) && !isBound(minor)
    );
    if (other !== undefined) return other;
    if (this.#added < Candidates.#MAX_ADDED) {
      this.#added++;
      return this.#control.add();
    }
    this.#patience += 2; // all over again
    return free;
  }

  #isEligible(minor: number): boolean {
    return (this.#failures.get(minor) ?? 0) < this.#patience;
  }
}

/** Throws unless the device is what was asked for. */
function verify(
  loop: BoundLoop,
  wanted: AttachOptions,
  config: LoopConfig,
  backing: Backing,
): void {
  const info = loop.getInfo();
  loop.remember(info);
  const flags = decodeFlags(info.flags);
  const readOnly = wanted.readOnly ?? false;

  const expect = <T>(
    what: string,
    got: T,
    want: T | undefined,
    hint = "",
    errno = EIO,
  ): void => {
    if (want === undefined || got === want) return;
    throw new LoopError(
      `Cannot attach ${backing.name} to ${quote(loop.path)} as asked`,
      {
        errno,
        operation: "LOOP_CONFIGURE",
        path: loop.path,
        hint: `wanted ${what} ${want}, got ${got}${hint}`,
      },
    );
  };
  expect("backing device", Number(info.device), backing.stat.device);
  expect("backing inode", info.inode, backing.stat.inode);
  expect("offset", info.offset, config.info.offset);
  expect("sizelimit", info.sizelimit, config.info.sizelimit);
  expect("reference", info.fileName, config.info.fileName);
  expect("autoclear", flags.autoclear, wanted.autoclear);
  expect("partscan", flags.partscan, wanted.partscan);
  expect(
    "directIo",
    flags.directIo,
    wanted.directIo,
    flags.directIo
      ? ": the descriptor was opened for direct I/O"
      : `: ${whyNoDirectIo(backing, config)}`,
    EINVAL,
  );
  expect("readOnly", flags.readOnly, readOnly);
  if (!readOnly && loop.isReadOnly()) makeWritable(loop);
  expect("readOnly", loop.isReadOnly(), readOnly);
  expect("block size", loop.getBlockSize(), wanted.blockSize);

  const size = BigInt(loop.getSize());
  const first = deviceSize(backing.size, config);
  if (size === first) return;
  // The file may have grown or shrunk before or after the kernel looked.
  const last = deviceSize(backing.currentSize(), config);
  const between = first < last
    ? first <= size && size <= last
    : last <= size && size <= first;
  if (!between) expect("size", size, last);
}

/** What the kernel, which drops the wish in silence, had against direct I/O. */
function whyNoDirectIo(backing: Backing, config: LoopConfig): string {
  const alignment = directIoAlignment(backing.fd);
  if (alignment === 0) return `${backing.name} has no direct I/O`;
  const { offset } = config.info;
  if (alignment !== undefined && offset % BigInt(alignment) !== 0n) {
    return `offset ${offset} is no multiple of ${alignment}, the block size below the file`;
  }
  if (alignment !== undefined && config.blockSize < alignment) {
    return `the block size must be at least ${alignment}, that below the file`;
  }
  return "the file system has no direct I/O, or offset or block size do not fit its blocks";
}

/** How large a device over a file of that size is: whole sectors of what is left behind the offset. */
function deviceSize(fileSize: bigint, { info }: LoopConfig): bigint {
  let size = fileSize > info.offset ? fileSize - info.offset : 0n;
  if (info.sizelimit !== 0n && info.sizelimit < size) size = info.sizelimit;
  return size & ~511n;
}

/** `BLKROSET` of an earlier owner outlives the binding. */
function makeWritable(loop: Loop): void {
  check(
    ioctlPointer(loop.fd, BLKROSET, new Uint8Array(4)),
    () => ({
      action: `Cannot make ${quote(loop.path)} writable`,
      operation: "BLKROSET",
      path: loop.path,
      hint: "an earlier user of the device had made it read-only",
    }),
  );
}
