/** Open files: the backing files of loop devices, and directories of device nodes. */
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

/**
 * An open file descriptor that is closed once: by {@linkcode FileDescriptor.close}
 * or at the end of a `using` block.
 *
 * @example A file that is closed at the end of the block
 * ```ts
 * import { openMemory } from "@loopdev/loopdev";
 * import { assert } from "@std/assert";
 *
 * using memory = openMemory(1024 * 1024);
 * assert(memory.fd >= 0);
 * ```
 */
export class FileDescriptor implements Disposable {
  #fd: number;

  /**
   * Takes over an open descriptor: it is closed by this object.
   *
   * @param fd The descriptor.
   * @throws {RangeError} for a number that cannot be a descriptor
   */
  constructor(fd: number) {
    this.#fd = checkDescriptor(fd, "fd");
  }

  /** The descriptor; -1 once it is closed. */
  get fd(): number {
    return this.#fd;
  }

  /** Closes the descriptor. Doing it again does nothing. */
  close(): void {
    const fd = this.#fd;
    this.#fd = -1;
    if (fd !== -1) close(fd);
  }

  /** The same as {@linkcode FileDescriptor.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** How {@linkcode openFile} opens. */
export interface OpenFileOptions {
  /**
   * Open for reading only.
   *
   * @default {false}
   */
  readOnly?: boolean | undefined;
  /**
   * Open with `O_DIRECT`. A loop device over such a descriptor uses direct I/O
   * when it can.
   *
   * @default {false}
   */
  directIo?: boolean | undefined;
  /**
   * `"refuse"`: an error, `ELOOP`, when any part of the path is a symbolic link
   * (`openat2`, Linux 5.6). For root that opens the files of other users, who could
   * lead it to any file.
   *
   * @default {"follow"}
   */
  symlinks?: "follow" | "refuse" | undefined;
}

/**
 * Opens a regular file or a block device, to be the backing file of a loop
 * device. Anything else is refused before it is opened, so a FIFO does not hang, also
 * when the name is exchanged at that moment.
 *
 * A `file:` URL can name files whose names are not UTF-8. The descriptor is
 * `O_CLOEXEC`: child processes do not inherit it. Requires `--allow-ffi`.
 *
 * @param path The file. Relative to the working directory.
 * @param options How to open it.
 * @returns The open file.
 * @throws {LoopError} what `open(2)` gives: `ENOENT`, `EACCES`, `EROFS` …;
 * `EISDIR` for a directory and `EINVAL` for a character device, FIFO or socket;
 * `EINVAL` when the file system has no direct I/O and it was asked for; `ELOOP` for a
 * symbolic link that is refused, and `ENOSYS` where the kernel cannot refuse them
 * @throws {TypeError} for a NUL in the path, or a URL that is no `file:` URL
 *
 * @example Attaching an open file
 * ```ts
 * import { attach, openFile } from "@loopdev/loopdev";
 *
 * await Deno.writeFile("/tmp/loopdev-open-file.img", new Uint8Array(1 << 20));
 * using file = openFile("/tmp/loopdev-open-file.img");
 * await using device = await attach(file);
 * console.log(device.path);
 * await Deno.remove("/tmp/loopdev-open-file.img");
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
  // Opening another kind of file can hang (a FIFO) or do things (a tape).
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

/** What is to be done about symbolic links. */
export function checkSymlinks(value: unknown): Symlinks {
  if (value === undefined) return "follow";
  if (value === "follow" || value === "refuse") return value;
  const shown = typeof value === "string" ? quote(value) : String(value);
  throw new TypeError(
    `Cannot use ${shown} as symlinks: it must be "follow" or "refuse"`,
  );
}

/** A file that was found; or throws the error number that was given in its place. */
export function unwrapFound(
  found: FoundFile | number,
  failure: () => Failure,
): FoundFile {
  if (typeof found === "number") unwrap(found, failure);
  return found as FoundFile;
}

/** A `Stat`, or the error that was given in its place. */
export function unwrapStat(
  stat: Stat | number,
  action: string,
  path?: string,
  operation = "stat",
): Stat {
  if (typeof stat !== "number") return stat;
  throw new LoopError(action, { errno: -stat, operation, path });
}

/** Refuses what cannot back a loop device; before Linux 6.18 the kernel's own refusal keeps the file's mount busy for ever. */
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

/** What a file is, in words. */
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
    case 0o140000:
      return "a socket";
    default:
      return "an unknown kind of file";
  }
}

/**
 * Opens a directory, for the `dirFd` of {@linkcode Loop},
 * {@linkcode LoopControl} and {@linkcode Loop.mknod}. Requires `--allow-ffi`.
 *
 * @param path The directory. Relative to the working directory.
 * @returns The open directory.
 * @throws {LoopError} what `open(2)` gives: `ENOENT`, `ENOTDIR`, `EACCES` …
 * @throws {TypeError} for a NUL in the path, or a URL that is no `file:` URL
 *
 * @example Opening a device through a directory of nodes
 * ```ts
 * import { LoopControl, openDirectory } from "@loopdev/loopdev";
 *
 * using dev = openDirectory("/dev");
 * using control = new LoopControl({ dirFd: dev.fd });
 * console.log(control.getUnbound());
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
 * Makes a file in memory (a memfd): a copy of the bytes, or so many zero bytes.
 * It lives as long as a descriptor or a loop device refers to it. Requires
 * `--allow-ffi`.
 *
 * @param content The bytes, or how many zero bytes.
 * @returns The open file.
 * @throws {LoopError} `ENOMEM`, `ENOSPC`, `EFBIG`, `EMFILE`
 * @throws {RangeError} for a negative or fractional number of bytes
 *
 * @example A disk in memory
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
      "Cannot make a file in memory: content must be a Uint8Array or a number",
    );
  }
  if (
    typeof content === "number" &&
    (!Number.isSafeInteger(content) || content < 0)
  ) {
    throw new RangeError(
      `Cannot make a file of ${content} bytes in memory: it must be an integer, 0 or more`,
    );
  }
  const memory = new FileDescriptor(
    unwrap(memfdCreate(cString("loopdev")), () => ({
      action: "Cannot make a file in memory",
      operation: "memfd_create",
    })),
  );
  try {
    if (typeof content !== "number") write(memory.fd, content, 0);
    // The last byte gives a sparse file its size.
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
        action: `Cannot put ${offset + bytes.length} bytes into memory`,
        operation: "pwrite",
      }),
    );
  }
}
