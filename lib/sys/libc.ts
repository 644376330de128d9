/**
 * Calls the C library: one table of prototypes, one place that reads errno, one
 * function for each system call.
 *
 * Every function returns the result or the negative error number, as the kernel does.
 * None throws for a failed call, so that the caller, which knows what was tried on
 * what, can write the message.
 */

import { grantedLibraries, notGranted } from "./find_libc.ts";
import { FLOCK, OPEN_HOW } from "./layouts.ts";
import { opening } from "./opening.ts";

/** Symbols that every program needs. Listing devices needs no others. */
const FEW_SYMBOLS = {
  /** `int openat(int directory, const char *path, int flags, mode_t mode)` */
  openat: { parameters: ["i32", "buffer", "i32", "u32"], result: "i32" },
  /** `int close(int fd)` */
  close: { parameters: ["i32"], result: "i32" },
  /**
   * `ssize_t pread(int fd, void *buffer, size_t size, off_t offset)`. Our sizes fit in
   * 32 bits.
   */
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  /**
   * `long syscall(long number, …)` for calls that some C libraries do not export: (int,
   * pointer, int, int, pointer).
   */
  syscall: {
    parameters: ["i64", "i64", "buffer", "i64", "i64", "buffer"],
    result: "i32",
  },
  /** `int *__errno_location(void)`, in glibc and musl */
  errnoLocation: {
    name: "__errno_location",
    parameters: [],
    result: "pointer",
  },
  /**
   * `void *memcpy(void *to, const void *from, size_t size)`. Unlike
   * `Deno.UnsafePointer`, it is allowed under a narrow grant. Returns the address of
   * `to`.
   */
  memcpy: { parameters: ["buffer", "pointer", "usize"], result: "usize" },
} as const satisfies Deno.ForeignLibraryInterface;

const MORE_SYMBOLS = {
  /** `int ioctl(int fd, unsigned long request, long value)` */
  ioctlValue: {
    name: "ioctl",
    parameters: ["i32", "u32", "i64"],
    result: "i32",
  },
  /** `int ioctl(int fd, unsigned long request, void *argument)` */
  ioctlPointer: {
    name: "ioctl",
    parameters: ["i32", "u32", "buffer"],
    result: "i32",
  },
  /** `int fcntl(int fd, int command, void *argument)` */
  fcntl: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  /** `int memfd_create(const char *name, unsigned flags)` */
  memfdCreate: {
    name: "memfd_create",
    parameters: ["buffer", "u32"],
    result: "i32",
  },
  /** `int uname(struct utsname *name)` */
  uname: { parameters: ["buffer"], result: "i32" },
  /** `syscall` for calls with numbers only. */
  syscallNumbers: {
    name: "syscall",
    parameters: ["i64", "i64", "i64", "i64", "i64"],
    result: "i32",
  },
  /** `syscall` for calls with two pointers in the middle: (int, pointer, pointer, int). */
  syscallTwoPointers: {
    name: "syscall",
    parameters: ["i64", "i64", "buffer", "buffer", "i64"],
    result: "i32",
  },
  /** `syscall` on another thread: (int, pointer, number, number). Its errno is lost. */
  syscallNonblocking: {
    name: "syscall",
    parameters: ["i64", "i64", "buffer", "i64", "i64"],
    result: "i32",
    nonblocking: true,
  },
} as const satisfies Deno.ForeignLibraryInterface;

const SYMBOLS = { ...FEW_SYMBOLS, ...MORE_SYMBOLS } as const;

/** System call numbers, `asm/unistd_64.h` and `asm-generic/unistd.h`. */
export const SYSTEM_CALLS = {
  x86_64: {
    read: 0n,
    close: 3n,
    pread64: 17n,
    pwrite64: 18n,
    flock: 73n,
    fsync: 74n,
    fstatfs: 138n,
    mount: 165n,
    umount2: 166n,
    getdents64: 217n,
    openat: 257n,
    mkdirat: 258n,
    mknodat: 259n,
    unlinkat: 263n,
    readlinkat: 267n,
    fchmodat: 268n,
    unshare: 272n,
    sync_file_range: 277n,
    syncfs: 306n,
    kcmp: 312n,
    statx: 332n,
    move_mount: 429n,
    fsopen: 430n,
    fsconfig: 431n,
    fsmount: 432n,
    openat2: 437n,
    cachestat: 451n,
  },
  aarch64: {
    read: 63n,
    close: 57n,
    pread64: 67n,
    pwrite64: 68n,
    flock: 32n,
    fsync: 82n,
    fstatfs: 44n,
    mount: 40n,
    umount2: 39n,
    getdents64: 61n,
    openat: 56n,
    mkdirat: 34n,
    mknodat: 33n,
    unlinkat: 35n,
    readlinkat: 78n,
    fchmodat: 53n,
    unshare: 97n,
    sync_file_range: 84n,
    syncfs: 267n,
    kcmp: 272n,
    statx: 291n,
    move_mount: 429n,
    fsopen: 430n,
    fsconfig: 431n,
    fsmount: 432n,
    openat2: 437n,
    cachestat: 451n,
  },
} as const;

/** System call numbers of this machine. */
export const SYSCALL_NUMBERS =
  SYSTEM_CALLS[Deno.build.arch as keyof typeof SYSTEM_CALLS];

type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];
/**
 * The symbols, accepting buffers of any kind: before Deno 2.8.3, the types required an
 * `ArrayBuffer`.
 */
export type Libc = {
  readonly [Name in keyof Symbols]: Symbols[Name] extends
    (...args: infer Args) => infer Result ? (
      ...args: {
        [Index in keyof Args]: Args[Index] extends BufferSource | null
          ? Uint8Array | Int32Array | null
          : Args[Index];
      }
    ) => Result
    : never;
};

let library: Libc | undefined;
let openedPath = "";
let errnoPointer: Deno.PointerValue = null;
// With a buffer of its own, because V8 would have to move it at the first call.
const errnoSlot = new Int32Array(new ArrayBuffer(4));

function openLibrary(path: string): Libc {
  const symbols = opening.onUse
    ? openFew(path)
    : Deno.dlopen(path, SYMBOLS).symbols as Libc;
  // Constant for a thread, so that reading errno takes only one call.
  errnoPointer = symbols.errnoLocation();
  openedPath = path;
  library = symbols;
  // The first call makes V8 compile and allocate, for which it may wait for a lock. The
  // first wait of a process looks for tsc_freq_khz in sysfs, which leaves ENOENT in errno.
  // It is less likely after a call that failed if all of that was done before.
  errnoResult(-1);
  return symbols;
}

/**
 * Opens the few symbols that every program needs, and the others on first use, because
 * each symbol costs time.
 */
function openFew(path: string): Libc {
  const few = { ...Deno.dlopen(path, FEW_SYMBOLS).symbols } as Libc;
  const openAll = (): Libc =>
    library = { ...few, ...Deno.dlopen(path, MORE_SYMBOLS).symbols } as Libc;
  const onUse = Object.create(few);
  for (const name of Object.keys(MORE_SYMBOLS)) {
    Object.defineProperty(onUse, name, {
      get: () => openAll()[name as keyof Libc],
    });
  }
  return onUse;
}

/**
 * Opens another table of prototypes, for calls that most programs never make, because
 * each symbol costs time at import.
 */
export function openTable<const Table extends Deno.ForeignLibraryInterface>(
  symbols: Table,
): Deno.DynamicLibrary<Table>["symbols"] {
  libc();
  return Deno.dlopen(openedPath, symbols).symbols;
}

/** Returns the library. Opens it on first use, if that was not possible at import. */
export function libc(): Libc {
  return library ?? openNow();
}

function openNow(): Libc {
  if (Deno.build.os !== "linux" || SYSCALL_NUMBERS === undefined) {
    throw new Deno.errors.NotSupported(
      `Cannot use loop devices on ${Deno.build.os} ${Deno.build.arch}: they require Linux on x86_64 or aarch64`,
    );
  }
  const failures = openGranted();
  if (library !== undefined) return library;
  // Prompts, if prompting is enabled.
  Deno.permissions.requestSync({ name: "ffi" });
  failures.push(...openGranted());
  if (library !== undefined) return library;
  throw notGranted(failures);
}

/**
 * Opens the first library that is granted and can be opened. Returns the errors of the
 * others.
 */
function openGranted(): Error[] {
  const failures: Error[] = [];
  for (const path of grantedLibraries()) {
    try {
      openLibrary(path);
      return [];
    } catch (error) {
      failures.push(error as Error);
    }
  }
  return failures;
}

// Deno's sanitizers report a library opened during a test as a leak, so it is opened at
// import, but only if that can neither prompt nor throw.
if (Deno.build.os === "linux" && SYSCALL_NUMBERS !== undefined) openGranted();

/**
 * Returns the result of a call, or its negative error number. Must be called
 * immediately after the call.
 */
export function errnoResult(result: number): number {
  if (result !== -1) return result;
  library!.memcpy(errnoSlot, errnoPointer, 4n);
  return -errnoSlot[0]!;
}

/** A NUL-terminated path. */
export type CString = Uint8Array;

const encoder = new TextEncoder();

/** Encodes text for C. The caller has checked that it contains no NUL. */
export function cString(text: string): CString {
  const bytes = new Uint8Array(text.length + 1);
  return putAscii(text, bytes) ? bytes : encoder.encode(text + "\0");
}

/** Returns a copy of the bytes of a path with a NUL at the end. */
export function terminated(bytes: Uint8Array): CString {
  const path = new Uint8Array(bytes.length + 1);
  path.set(bytes);
  return path;
}

const transient = new Uint8Array(4096);

/**
 * Like {@linkcode cString}, but in a shared buffer, valid only until the next call.
 * Saves allocating an array for each short path.
 */
export function transientCString(text: string): CString {
  return text.length < transient.length && putAscii(text, transient)
    ? transient
    : cString(text);
}

/**
 * Writes a text and a NUL into an array that is large enough. Returns `false` if it is
 * not ASCII.
 */
function putAscii(text: string, bytes: Uint8Array): boolean {
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (code > 127) return false;
    bytes[index] = code;
  }
  bytes[text.length] = 0;
  return true;
}

/** `fcntl.h`: makes paths relative to the working directory. */
export const AT_FDCWD = -100;

/** `asm/fcntl.h`: flags of open(2) that differ between architectures. */
export const OPEN_FLAGS = {
  x86_64: { O_DIRECT: 0o40000, O_DIRECTORY: 0o200000, O_NOFOLLOW: 0o400000 },
  aarch64: { O_DIRECT: 0o200000, O_DIRECTORY: 0o40000, O_NOFOLLOW: 0o100000 },
} as const;
const flags = OPEN_FLAGS[Deno.build.arch === "aarch64" ? "aarch64" : "x86_64"];

// asm-generic/fcntl.h
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_ACCMODE = 3;
export const O_EXCL = 0o200;
export const O_NOCTTY = 0o400;
export const O_APPEND = 0o2000;
export const O_NONBLOCK = 0o4000;
export const O_DIRECT: number = flags.O_DIRECT;
export const O_DIRECTORY: number = flags.O_DIRECTORY;
export const O_NOFOLLOW: number = flags.O_NOFOLLOW;
const O_CLOEXEC = 0o2000000;
export const O_PATH = 0o10000000;

/** `openat(2)`, always with `O_CLOEXEC`. */
export function openAt(
  directory: number,
  path: CString,
  flags: number,
): number {
  return errnoResult(libc().openat(directory, path, flags | O_CLOEXEC, 0));
}

// linux/openat2.h
export const RESOLVE_NO_SYMLINKS = 0x04;
/** Fails with `EAGAIN` instead of waiting: Linux 5.12. */
export const RESOLVE_CACHED = 0x20;

/**
 * `openat2(2)` (Linux 5.6), always with `O_CLOEXEC`: resolves the path under
 * restrictions.
 */
export function openAt2(
  directory: number,
  path: CString,
  flags: number,
  resolve: number,
): number {
  const how = new Uint8Array(OPEN_HOW.size);
  const view = new DataView(how.buffer);
  view.setBigUint64(OPEN_HOW.flags, BigInt(flags | O_CLOEXEC), true);
  view.setBigUint64(OPEN_HOW.resolve, BigInt(resolve), true);
  return errnoResult(
    libc().syscallTwoPointers(
      SYSCALL_NUMBERS.openat2,
      BigInt(directory),
      path,
      how,
      BigInt(how.length),
    ),
  );
}

/** `close(2)`. Its error is ignored, because the descriptor is closed in any case. */
export function close(fd: number): void {
  libc().close(fd);
}

/** `ioctl(2)` with a number as its argument. */
export function ioctlValue(
  fd: number,
  request: number,
  value: bigint,
): number {
  return errnoResult(libc().ioctlValue(fd, request, value));
}

/** `ioctl(2)` with a pointer to a structure as its argument. */
export function ioctlPointer(
  fd: number,
  request: number,
  argument: Uint8Array,
): number {
  return errnoResult(libc().ioctlPointer(fd, request, argument));
}

/**
 * Returns the address of an array, for a structure that points to another. The array
 * must live as long, and be larger than 64 bytes, because V8 moves smaller ones.
 */
export function addressOf(bytes: Uint8Array): bigint {
  return libc().memcpy(bytes, null, 0n);
}

// linux/fcntl.h
const F_GETFL = 3;
const F_DUPFD_CLOEXEC = 1030;
const F_OFD_SETLK = 37;
const F_GET_SEALS = 1034;
const F_SEAL_WRITE = 8;
const F_SEAL_FUTURE_WRITE = 16;
/** Types of locks: shared, exclusive, none. */
export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;

/** Returns the flags a descriptor was opened with: `fcntl(fd, F_GETFL)`. */
export function openFlags(fd: number): number {
  return errnoResult(libc().fcntl(fd, F_GETFL, null));
}

/** Duplicates a descriptor: `fcntl(fd, F_DUPFD_CLOEXEC)`. */
export function duplicate(fd: number): number {
  return errnoResult(libc().fcntl(fd, F_DUPFD_CLOEXEC, null));
}

/**
 * Returns `true` if a file in memory is sealed against writing. Other files cannot be
 * sealed.
 */
export function isSealed(fd: number): boolean {
  const seals = sealsOf(fd);
  return seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) !== 0;
}

/** Returns `true` for a file in memory, also on a tmpfs: no other files have seals. */
export function isInMemory(fd: number): boolean {
  return sealsOf(fd) >= 0;
}

function sealsOf(fd: number): number {
  return errnoResult(libc().fcntl(fd, F_GET_SEALS, null));
}

/**
 * Locks or unlocks a byte range for the open file description, without waiting:
 * `fcntl(fd, F_OFD_SETLK)`. A length of 0 extends to the end of the file, even if it
 * grows.
 */
export function lockBytes(
  fd: number,
  kind: typeof F_RDLCK | typeof F_WRLCK | typeof F_UNLCK,
  start: bigint,
  length: bigint,
): number {
  flockView.setInt16(FLOCK.l_type, kind, true);
  flockView.setBigInt64(FLOCK.l_start, start, true);
  flockView.setBigInt64(FLOCK.l_len, length, true);
  return errnoResult(libc().fcntl(fd, F_OFD_SETLK, flock));
}

const flock = new Uint8Array(FLOCK.size); // l_whence 0: SEEK_SET
const flockView = new DataView(flock.buffer);

/** Issues a system call with up to three numbers. */
export function numbersCall(
  number: bigint,
  first: number,
  second = 0,
  third = 0,
): number {
  return errnoResult(
    libc().syscallNumbers(
      number,
      BigInt(first),
      BigInt(second),
      BigInt(third),
      0n,
    ),
  );
}

/** `fsync(2)`. */
export function fsync(fd: number): number {
  return numbersCall(SYSCALL_NUMBERS.fsync, fd);
}

// linux/fs.h
const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
/** Waits for writes in progress, starts the rest, and waits for it. */
const SYNC_FILE_RANGE_WRITE_AND_WAIT = 7;

function syncFileRange(
  fd: number,
  offset: bigint,
  bytes: bigint,
  flags: number,
): number {
  return errnoResult(
    libc().syscallNumbers(
      SYSCALL_NUMBERS.sync_file_range,
      BigInt(fd),
      offset,
      bytes,
      BigInt(flags),
    ),
  );
}

/** Writes dirty pages back and waits for them: `sync_file_range(2)` over the whole file. */
export function writeBack(fd: number): number {
  return syncFileRange(fd, 0n, 0n, SYNC_FILE_RANGE_WRITE_AND_WAIT);
}

/** Page that no file has, so that nothing is waited for. */
const BEYOND_ALL_PAGES = 2n ** 62n;

/**
 * Returns the error of earlier write-backs that was not yet reported to this open file,
 * without writing or waiting: `sync_file_range(2)` over a page that does not exist.
 */
export function writeBackError(fd: number): number {
  return syncFileRange(fd, BEYOND_ALL_PAGES, 1n, SYNC_FILE_RANGE_WAIT_BEFORE);
}

/**
 * Like {@linkcode writeBack}, but on another thread, so that the event loop keeps
 * running. The result is lost: call `writeBackError` afterwards, on a descriptor that
 * was open before.
 */
export async function writeBackAsync(fd: number): Promise<void> {
  await libc().syscallNonblocking(
    SYSCALL_NUMBERS.sync_file_range,
    BigInt(fd),
    null, // offset 0
    0n,
    BigInt(SYNC_FILE_RANGE_WRITE_AND_WAIT),
  );
}

/** `fsync(2)` on another thread. The result is lost. */
export async function fsyncAsync(fd: number): Promise<void> {
  await libc().syscallNonblocking(
    SYSCALL_NUMBERS.fsync,
    BigInt(fd),
    null,
    0n,
    0n,
  );
}

/**
 * `openat(2)` with `O_PATH` on another thread. Returns a descriptor or -1; the error is
 * lost.
 */
export async function openPathAsync(
  directory: number,
  path: CString,
): Promise<number> {
  return await libc().syscallNonblocking(
    SYSCALL_NUMBERS.openat,
    BigInt(directory),
    path,
    BigInt(O_PATH | O_CLOEXEC),
    0n,
  );
}

/** `close(2)` on another thread: the last close of a device writes back dirty pages. */
export async function closeAsync(fd: number): Promise<void> {
  await libc().syscallNonblocking(
    SYSCALL_NUMBERS.close,
    BigInt(fd),
    null,
    0n,
    0n,
  );
}

/** `pread(2)`. Returns the number of bytes read. */
export function pread(
  fd: number,
  buffer: Uint8Array,
  offset: number,
): number {
  return errnoResult(
    libc().pread(
      fd,
      buffer,
      BigInt(Math.min(buffer.length, MAX_TRANSFER)),
      BigInt(offset),
    ),
  );
}

/** `pwrite(2)`. Returns the number of bytes written. */
export function pwrite(
  fd: number,
  bytes: Uint8Array,
  offset: number,
): number {
  return errnoResult(
    libc().syscall(
      SYSCALL_NUMBERS.pwrite64,
      BigInt(fd),
      bytes,
      BigInt(Math.min(bytes.length, MAX_TRANSFER)),
      BigInt(offset),
      null,
    ),
  );
}

/** Maximum size of one read or write: the result must fit in 31 bits. */
const MAX_TRANSFER = 2 ** 30;

/**
 * `pread(2)` on another thread. Returns the number of bytes read, or -1; the error is
 * lost.
 */
export async function preadAsync(
  fd: number,
  buffer: Uint8Array,
  offset: number,
): Promise<number> {
  return await transferAsync(SYSCALL_NUMBERS.pread64, fd, buffer, offset);
}

/**
 * `pwrite(2)` on another thread. Returns the number of bytes written, or -1; the error
 * is lost.
 */
export async function pwriteAsync(
  fd: number,
  bytes: Uint8Array,
  offset: number,
): Promise<number> {
  return await transferAsync(SYSCALL_NUMBERS.pwrite64, fd, bytes, offset);
}

async function transferAsync(
  number: bigint,
  fd: number,
  bytes: Uint8Array,
  offset: number,
): Promise<number> {
  return await libc().syscallNonblocking(
    number,
    BigInt(fd),
    bytes,
    BigInt(Math.min(bytes.length, MAX_TRANSFER)),
    BigInt(offset),
  );
}

// linux/fcntl.h
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;

/** `flock(2)`, without waiting. */
export function tryLock(fd: number, exclusive: boolean): number {
  const operation = (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB;
  return numbersCall(SYSCALL_NUMBERS.flock, fd, operation);
}

const MFD_CLOEXEC = 1;

/** `memfd_create(2)`, always with `MFD_CLOEXEC`. */
export function memfdCreate(name: CString): number {
  return errnoResult(libc().memfdCreate(name, MFD_CLOEXEC));
}

/** `readlinkat(2)`. Returns the number of bytes of the target in the buffer. */
export function readLinkAt(
  directory: number,
  path: CString,
  buffer: Uint8Array,
): number {
  return errnoResult(
    libc().syscallTwoPointers(
      SYSCALL_NUMBERS.readlinkat,
      BigInt(directory),
      path,
      buffer,
      BigInt(buffer.length),
    ),
  );
}

/** `getdents64(2)`. Returns the number of bytes of entries in the buffer. */
export function getDents(
  fd: number,
  buffer: Uint8Array,
): number {
  return errnoResult(
    libc().syscall(
      SYSCALL_NUMBERS.getdents64,
      BigInt(fd),
      buffer,
      BigInt(buffer.length),
      0n,
      null,
    ),
  );
}

/** Issues a system call with a path and one or two numbers. */
function pathCall(
  number: bigint,
  directory: number,
  path: CString,
  value: number,
  second = 0,
): number {
  return errnoResult(
    libc().syscall(
      number,
      BigInt(directory),
      path,
      BigInt(value),
      BigInt(second),
      null,
    ),
  );
}

/**
 * `mknodat(2)`: creates a device node of the type in its mode. The umask clears bits of
 * the mode.
 */
export function mknodAt(
  directory: number,
  path: CString,
  mode: number,
  rdev: number,
): number {
  return pathCall(SYSCALL_NUMBERS.mknodat, directory, path, mode, rdev);
}

/** `fchmodat(2)`. Follows symbolic links. */
export function chmodAt(
  directory: number,
  path: CString,
  mode: number,
): number {
  return pathCall(SYSCALL_NUMBERS.fchmodat, directory, path, mode);
}

/** `mkdirat(2)`. The umask clears bits of the mode. */
export function mkdirAt(
  directory: number,
  path: CString,
  mode: number,
): number {
  return pathCall(SYSCALL_NUMBERS.mkdirat, directory, path, mode);
}

/** `unlinkat(2)` of a file. */
export function unlinkAt(directory: number, path: CString): number {
  return pathCall(SYSCALL_NUMBERS.unlinkat, directory, path, 0);
}

const AT_REMOVEDIR = 0x200;

/** `unlinkat(2)` of an empty directory. */
export function removeDirectoryAt(directory: number, path: CString): number {
  return pathCall(SYSCALL_NUMBERS.unlinkat, directory, path, AT_REMOVEDIR);
}

const UTSNAME_FIELD = 65;

/**
 * Returns the version of the running kernel, `[6, 18]`, or `undefined` if it cannot be
 * read.
 */
export function kernelVersion(): [major: number, minor: number] | undefined {
  const bytes = new Uint8Array(6 * UTSNAME_FIELD);
  if (errnoResult(libc().uname(bytes)) < 0) return undefined;
  const release = new TextDecoder().decode(
    bytes.subarray(2 * UTSNAME_FIELD, 3 * UTSNAME_FIELD),
  );
  const match = /^(\d+)\.(\d+)/.exec(release);
  return match === null ? undefined : [Number(match[1]), Number(match[2])];
}

/**
 * `KCMP_FILES` and `KCMP_FS` in linux/kcmp.h: descriptors, and root and working
 * directory.
 */
const SHARED_BY_THREADS = [2n, 3n];

/**
 * Returns `true` if two threads share their descriptors and directories, or a negative
 * error number if that cannot be determined.
 */
export function shareFiles(first: number, second: number): boolean | number {
  for (const type of SHARED_BY_THREADS) {
    const order = errnoResult(
      libc().syscallNumbers(
        SYSCALL_NUMBERS.kcmp,
        BigInt(first),
        BigInt(second),
        type,
        0n,
      ),
    );
    if (order < 0) return order;
    if (order > 0) return false;
  }
  return true;
}
