/** A file that is about to be attached. */
import { isBlockDevice, majorMinor, type Stat, statOf } from "../sys/stat.ts";
import { checkDescriptor, checkPath } from "../arguments.ts";
import { LoopError, quote, unwrap } from "../errors.ts";
import {
  checkBackingFile,
  FileDescriptor,
  openFile,
  takeDescriptor,
  unwrapStat,
} from "../kernel/file_descriptor.ts";
import { pathOf, type Symlinks } from "../kernel/found_file.ts";
import { BLKGETSIZE64 } from "../sys/blk_uapi.ts";
import { EACCES, EBADF, EINVAL, EPERM, EROFS, ETXTBSY } from "../sys/errno.ts";
import {
  AT_FDCWD,
  close,
  closeAsync,
  cString,
  duplicate,
  fsyncAsync,
  ioctlPointer,
  isInMemory,
  isSealed,
  O_ACCMODE,
  O_APPEND,
  O_DIRECT,
  O_NOCTTY,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  openAt,
  openFlags,
} from "../sys/libc.ts";
import { isCachedBeyond } from "../sys/page_cache.ts";
import { abortable } from "../waiting.ts";
import { MAX_INLINE, MAX_INLINE_BYTES } from "./release.ts";

/** A file that is about to be attached. */
export class Backing implements Disposable {
  readonly #owned: FileDescriptor | undefined;
  readonly fd: number;
  /** Name of the file, for messages. */
  readonly name: string;
  readonly stat: Stat;
  /** Size of the file in bytes, at the time it was opened. */
  readonly size: bigint;

  constructor(fd: number, name: string, owned?: FileDescriptor) {
    this.fd = fd;
    this.name = name;
    this.#owned = owned;
    // Examined after opening: opening for writing on an overlayfs replaces the file by
    // a copy.
    this.stat = this.#examine();
    checkBackingFile(this.stat, `Cannot attach ${name}`);
    this.size = this.#isBlockDevice ? this.#deviceSize() : this.stat.size;
  }

  /** Returns the current size of the file in bytes. */
  currentSize(): bigint {
    return this.#isBlockDevice ? this.#deviceSize() : this.#examine().size;
  }

  /**
   * Opens the same file again for ourselves. A lock belongs to the open file
   * description, and the caller's may outlive the device or be attached twice.
   */
  reopen(readOnly: boolean): Backing {
    const action = `Cannot open ${this.name} again to lock its bytes`;
    const flags = unwrap(openFlags(this.fd), () => ({
      action,
      operation: "fcntl",
    }));
    const access = readOnly ? O_RDONLY : O_RDWR;
    const fd = unwrap(
      this.#openAgain(access | (flags & O_DIRECT) | O_NONBLOCK | O_NOCTTY),
      () => ({
        action,
        operation: "open",
        hint: 'use overlap: "allow" to attach it without a lock',
      }),
    );
    const descriptor = new FileDescriptor(fd);
    try {
      return new Backing(descriptor.fd, this.name, descriptor);
    } catch (error) {
      descriptor.close();
      throw error;
    }
  }

  /** Opens the file again. Returns a descriptor, or a negative error number. */
  #openAgain(flags: number): number {
    return openAt(AT_FDCWD, cString(pathOf(this.fd)), flags);
  }

  /** Opens the file again for reading through the page cache. */
  openForReading(): FileDescriptor {
    return new FileDescriptor(
      unwrap(
        this.#openAgain(O_RDONLY),
        () => ({
          action: `Cannot open ${this.name} again`,
          operation: "open",
        }),
      ),
    );
  }

  /**
   * `true` for a regular file, for which the size of the device is known exactly once
   * it is bound.
   */
  get isRegular(): boolean {
    return !this.#isBlockDevice;
  }

  get #isBlockDevice(): boolean {
    return isBlockDevice(this.stat);
  }

  #examine(): Stat {
    return unwrapStat(statOf(this.fd), `Cannot attach ${this.name}`);
  }

  #deviceSize(): bigint {
    const size = new BigUint64Array(1);
    unwrap(
      ioctlPointer(this.fd, BLKGETSIZE64, new Uint8Array(size.buffer)),
      () => ({
        action: `Cannot determine the size of ${this.name}`,
        operation: "BLKGETSIZE64",
      }),
    );
    return size[0]!;
  }

  /** `true` if writing back would block the event loop. */
  get isMuchDirty(): boolean {
    if (this.size <= MAX_INLINE_BYTES) return false;
    return isCachedBeyond(MAX_INLINE, this.fd, this.size) === true;
  }

  /**
   * Writes back on another thread. From Linux 6.14 on, binding the file makes the
   * kernel write it back, which would block the event loop.
   */
  async writeBackInBackground(signal: AbortSignal | undefined): Promise<void> {
    // After an abort, the other thread still uses its descriptor. A duplicate would keep
    // the bytes locked, so it is one only if the file cannot be opened again.
    const again = this.#openAgain(O_RDONLY | O_NONBLOCK);
    const fd = again < 0 ? duplicate(this.fd) : again;
    if (fd < 0) return; // no descriptor left: the kernel writes back when the file is bound
    await abortable(fsyncAsync(fd).finally(() => close(fd)), signal);
  }

  /**
   * Closes the file on another thread if that may take long: a network file system
   * writes back at the close, and a file server is asked. Returns `undefined` if the
   * file was closed at once.
   */
  closeInBackground(): Promise<void> | undefined {
    if (this.#owned === undefined) return undefined;
    // Local disks have device numbers of their own.
    const [major] = majorMinor(this.stat.device);
    if (major === 0 && !isInMemory(this.fd)) {
      return closeAsync(takeDescriptor(this.#owned));
    }
    this.#owned.close();
    return undefined;
  }

  [Symbol.dispose](): void {
    this.#owned?.close();
  }
}

/** Options for opening the backing file. */
interface OpenOptions {
  readonly readOnly: boolean;
  /** `true` if the bytes will be locked. */
  readonly isLocked: boolean;
  readonly symlinks: Symlinks;
}

/** Opens a file to be attached, or uses the caller's descriptor. */
export function openBacking(
  file: string | URL | { readonly fd: number },
  options: OpenOptions,
): Backing {
  const backing = openAny(file, options);
  if (options.readOnly || !isSealedMemory(backing)) return backing;
  using _closed = backing;
  throw new LoopError(`Cannot attach ${backing.name} for writing`, {
    errno: EPERM,
    operation: "fcntl",
    hint:
      "it is sealed against writing; use readOnly: true to attach it for reading",
  });
}

/** Returns `true` for a sealed file, which is always in memory and has no name. */
function isSealedMemory({ fd, stat }: Backing): boolean {
  return stat.links === 0 && isSealed(fd);
}

function openAny(
  file: string | URL | { readonly fd: number },
  { readOnly, isLocked, symlinks }: OpenOptions,
): Backing {
  if (typeof file === "object" && file !== null && "fd" in file) {
    if (file.fd === -1) {
      throw new LoopError("Cannot attach a descriptor", {
        errno: EBADF,
        operation: "attach",
        hint: "it is closed",
      });
    }
    const backing = borrowed(checkDescriptor(file.fd, "fd"), {
      readOnly,
      isLocked,
    });
    return isLocked ? backing.reopen(readOnly) : backing;
  }
  const descriptor = readOnly
    ? openFile(file, { readOnly, symlinks })
    : openForWriting(file, symlinks);
  try {
    const name = quote(checkPath(file).text);
    return new Backing(descriptor.fd, name, descriptor);
  } catch (error) {
    descriptor.close();
    throw error;
  }
}

function openForWriting(
  file: string | URL,
  symlinks: Symlinks,
): FileDescriptor {
  try {
    return openFile(file, { symlinks });
  } catch (error) {
    if (
      error instanceof LoopError &&
      [EACCES, EPERM, EROFS, ETXTBSY].includes(error.errno) &&
      canRead(file, symlinks)
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

function canRead(file: string | URL, symlinks: Symlinks): boolean {
  try {
    openFile(file, { readOnly: true, symlinks }).close();
    return true;
  } catch {
    return false;
  }
}

function borrowed(
  fd: number,
  { readOnly, isLocked }: Pick<OpenOptions, "readOnly" | "isLocked">,
): Backing {
  const backing = new Backing(fd, `descriptor ${fd}`);
  const action = `Cannot attach ${backing.name}`;
  const flags = unwrap(openFlags(fd), () => ({ action, operation: "fcntl" }));
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
  // Some kernels would append every block. To be locked, the file is opened again without
  // the flag.
  if ((flags & O_APPEND) !== 0 && !readOnly && !isLocked) {
    throw new LoopError(`${action} for writing`, {
      errno: EINVAL,
      operation: "fcntl",
      hint: "it was opened with O_APPEND",
    });
  }
  return backing;
}
