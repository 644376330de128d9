/** Opens the backing files of loop devices, and directories of device nodes. */
import {
  S_IFBLK,
  S_IFCHR,
  S_IFDIR,
  S_IFMT,
  S_IFREG,
  type Stat,
} from "../sys/stat.ts";
import {
  checkBoolean,
  checkDescriptor,
  checkOptions,
  checkPath,
} from "../arguments.ts";
import { type Failure, LoopError, quote, unwrap } from "../errors.ts";
import { EINVAL, EISDIR } from "../sys/errno.ts";
import { FoundFile, SYMLINK_HINTS, type Symlinks } from "./found_file.ts";
import {
  AT_FDCWD,
  close,
  cString,
  memfdCreate,
  O_DIRECT,
  O_DIRECTORY,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  openAt,
  pwrite,
} from "../sys/libc.ts";

/** Takes the descriptor from an object, which is closed then. The caller closes the descriptor. */
export let takeDescriptor: (descriptor: FileDescriptor) => number;

/**
 * An open file descriptor that is closed exactly once: by
 * {@linkcode FileDescriptor.close} or at the end of a `using` block.
 *
 * @example Close a file at the end of a block
 * ```ts
 * import { openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * let released;
 * {
 *   using memory = openMemory(1024 * 1024);
 *   released = memory;
 * }
 * assertEquals(released.fd, -1);
 * ```
 */
export class FileDescriptor implements Disposable {
  #fd: number;

  static {
    takeDescriptor = (descriptor) => {
      const fd = descriptor.#fd;
      descriptor.#fd = -1;
      return fd;
    };
  }

  /**
   * Takes ownership of an open descriptor, which this object then closes.
   *
   * @param fd The descriptor.
   * @throws {RangeError} If the number cannot be a descriptor.
   */
  constructor(fd: number) {
    this.#fd = checkDescriptor(fd, "fd");
  }

  /** The descriptor; -1 once it is closed. */
  get fd(): number {
    return this.#fd;
  }

  /** Closes the descriptor. A second call does nothing. */
  close(): void {
    const fd = this.#fd;
    this.#fd = -1;
    if (fd !== -1) close(fd);
  }

  /** Closes the descriptor, like {@linkcode FileDescriptor.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** Options of {@linkcode openFile}. */
export interface OpenFileOptions {
  /**
   * Opens the file for reading only.
   *
   * @default {false}
   */
  readOnly?: boolean | undefined;
  /**
   * Opens the file with `O_DIRECT`. A loop device over such a descriptor uses direct
   * I/O if it can.
   *
   * @default {false}
   */
  directIo?: boolean | undefined;
  /**
   * Policy for symbolic links. With `"refuse"`, a symbolic link in any part of the path
   * is an error (`ELOOP`; `openat2`, Linux 5.6). Use it when root opens files of other
   * users, who could otherwise redirect the path to any file.
   *
   * @default {"follow"}
   */
  symlinks?: "follow" | "refuse" | undefined;
}

/**
 * Opens a regular file or a block device as the backing file of a loop device. Other
 * kinds of files are refused before they are opened, so a FIFO cannot hang the call,
 * even if the name is replaced at that moment.
 *
 * A `file:` URL can name a file whose name is not UTF-8. The descriptor is `O_CLOEXEC`:
 * child processes do not inherit it. Requires `--allow-ffi`.
 *
 * @param path The file. A path is relative to the working directory.
 * @param options Options for opening the file.
 * @returns The open file.
 * @throws {LoopError} If `open(2)` fails (`ENOENT`, `EACCES`, `EROFS` …); if the path
 * is a directory (`EISDIR`) or a character device, FIFO or socket (`EINVAL`); if direct
 * I/O was requested and the file system does not support it (`EINVAL`); if a symbolic
 * link is refused (`ELOOP`), or the kernel cannot refuse them (`ENOSYS`).
 * @throws {TypeError} If the path contains a NUL, or the URL is not a `file:` URL.
 *
 * @example Attach an open file
 * ```ts
 * import { attach, openFile } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * await Deno.truncate(path, 1 << 20);
 * using file = openFile(path);
 * await using device = await attach(file);
 * assertEquals(device.size, 1 << 20);
 * await Deno.remove(path);
 * ```
 */
export function openFile(
  path: string | URL,
  options: OpenFileOptions = {},
): FileDescriptor {
  checkOptions(options, ["readOnly", "directIo", "symlinks"]);
  const readOnly = checkBoolean(options.readOnly, "readOnly") ?? false;
  const directIo = checkBoolean(options.directIo, "directIo") ?? false;
  const symlinks = checkSymlinks(options.symlinks);
  const file = checkPath(path);
  const action = `Cannot open ${quote(file.text)}`;

  using found = unwrapFound(
    FoundFile.find(AT_FDCWD, file.bytes, symlinks),
    () => ({
      action,
      operation: "open",
      path: file.text,
      hint: symlinks === "refuse" ? SYMLINK_HINTS : undefined,
    }),
  );
  // Opening another kind of file can hang (a FIFO) or have side effects (a tape).
  checkBackingFile(found.stat, action, file.text);
  const fd = found.open(
    (readOnly ? O_RDONLY : O_RDWR) | (directIo ? O_DIRECT : 0) |
      O_NONBLOCK | O_NOCTTY,
  );
  return new FileDescriptor(
    unwrap(fd, () => ({
      action: `${action} for ${readOnly ? "reading" : "writing"}`,
      operation: "open",
      path: file.text,
    })),
  );
}

/** Validates the policy for symbolic links. */
export function checkSymlinks(value: unknown): Symlinks {
  if (value === undefined) return "follow";
  if (value === "follow" || value === "refuse") return value;
  const shown = typeof value === "string" ? quote(value) : String(value);
  throw new TypeError(
    `Cannot use ${shown} as symlinks: it must be "follow" or "refuse"`,
  );
}

/** Returns a file that was found, or throws the error number given in its place. */
export function unwrapFound(
  found: FoundFile | number,
  failure: () => Failure,
): FoundFile {
  if (typeof found === "number") unwrap(found, failure);
  return found as FoundFile;
}

/** Returns a `Stat`, or throws the error number given in its place. */
export function unwrapStat(
  stat: Stat | number,
  action: string,
  path?: string,
  operation = "stat",
): Stat {
  if (typeof stat !== "number") return stat;
  throw new LoopError(action, { errno: -stat, operation, path });
}

/**
 * Throws if a file cannot back a loop device. Before Linux 6.18, the kernel's own
 * refusal would keep the file's mount busy forever.
 */
export function checkBackingFile(
  stat: Stat,
  action: string,
  path?: string,
): void {
  const type = stat.mode & S_IFMT;
  if (type === S_IFREG || type === S_IFBLK) return;
  throw new LoopError(action, {
    errno: type === S_IFDIR ? EISDIR : EINVAL,
    operation: "open",
    path,
    hint: `it is ${
      fileType(stat.mode)
    }, and only regular files and block devices can back a loop device`,
  });
}

/** Returns the type of a file in words. */
export function fileType(mode: number): string {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return "a regular file";
    case S_IFDIR:
      return "a directory";
    case S_IFBLK:
      return "a block device";
    case S_IFCHR:
      return "a character device";
    case 0o010000:
      return "a FIFO";
    case 0o120000:
      return "a symbolic link";
    case 0o140000:
      return "a socket";
    default:
      return "an unknown kind of file";
  }
}

/**
 * Opens a directory, for the `dirFd` option of {@linkcode Loop},
 * {@linkcode LoopControl} and {@linkcode Loop.mknod}. Requires `--allow-ffi`.
 *
 * @param path The directory. A path is relative to the working directory.
 * @returns The open directory.
 * @throws {LoopError} If `open(2)` fails (`ENOENT`, `ENOTDIR`, `EACCES` …).
 * @throws {TypeError} If the path contains a NUL, or the URL is not a `file:` URL.
 *
 * @example Open a device through a directory of nodes
 * ```ts
 * import { Loop, LoopControl, openDirectory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using dev = openDirectory("/dev");
 * using control = new LoopControl({ dirFd: dev.fd });
 * using loop = new Loop(control.getUnbound(), { dirFd: dev.fd });
 * assertEquals(loop.path, `/dev/${loop.name}`);
 * ```
 */
export function openDirectory(path: string | URL): FileDescriptor {
  const directory = checkPath(path);
  return new FileDescriptor(
    unwrap(
      openAt(AT_FDCWD, directory.bytes, O_RDONLY | O_DIRECTORY),
      () => ({
        action: `Cannot open directory ${quote(directory.text)}`,
        operation: "open",
        path: directory.text,
      }),
    ),
  );
}

/**
 * Creates a file in memory (a memfd) from a copy of the given bytes, or of the given
 * number of zero bytes. It exists as long as a descriptor or a loop device refers to
 * it. Requires `--allow-ffi`.
 *
 * @param content The bytes, or the number of zero bytes.
 * @returns The open file.
 * @throws {LoopError} If the kernel cannot create it (`ENOMEM`, `ENOSPC`, `EFBIG`,
 * `EMFILE`).
 * @throws {RangeError} If the number of bytes is negative or fractional.
 *
 * @example Create a disk in memory
 * ```ts
 * import { attach, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using memory = openMemory(16 * 1024 * 1024);
 * await using disk = await attach(memory);
 * assertEquals(disk.size, 16 * 1024 * 1024);
 * ```
 */
export function openMemory(content: Uint8Array | number): FileDescriptor {
  if (typeof content !== "number" && !(content instanceof Uint8Array)) {
    throw new TypeError(
      "Cannot create a file in memory: content must be a Uint8Array or a number",
    );
  }
  if (
    typeof content === "number" &&
    (!Number.isSafeInteger(content) || content < 0)
  ) {
    throw new RangeError(
      `Cannot create a file of ${content} bytes in memory: the size must be an integer, at least 0`,
    );
  }
  const memory = new FileDescriptor(
    unwrap(memfdCreate(cString("loopdev")), () => ({
      action: "Cannot create a file in memory",
      operation: "memfd_create",
    })),
  );
  try {
    if (typeof content !== "number") write(memory.fd, content, 0);
    // Writing only the last byte gives a sparse file its size.
    else if (content > 0) write(memory.fd, new Uint8Array(1), content - 1);
    return memory;
  } catch (error) {
    memory.close();
    throw error;
  }
}

function write(fd: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.length;) {
    done += unwrap(
      pwrite(fd, bytes.subarray(done), offset + done),
      () => ({
        action: `Cannot write ${
          offset + bytes.length
        } bytes to the file in memory`,
        operation: "pwrite",
      }),
    );
  }
}
