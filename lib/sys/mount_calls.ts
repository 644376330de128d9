/** The system calls that mount and unmount. Their prototypes are a table of their own, opened at the first use. */
import { STATFS } from "./layouts.ts";
import {
  type CString,
  cString,
  errnoResult,
  libc,
  numbersCall,
  openTable,
  SYSCALL_NUMBERS,
} from "./libc.ts";

const SYMBOLS = {
  /** `long syscall(long number, const char *path, long flags)` */
  pathCall: {
    name: "syscall",
    parameters: ["i64", "buffer", "i64"],
    result: "i32",
  },
  /** `pathCall` on another thread, where its errno is lost. */
  pathCallNonblocking: {
    name: "syscall",
    parameters: ["i64", "buffer", "i64"],
    result: "i32",
    nonblocking: true,
  },
  /** `long syscall(long number, int fd, unsigned command, const char *key, const void *value, int aux)` */
  fsconfig: {
    name: "syscall",
    parameters: ["i64", "i64", "i64", "buffer", "buffer", "i64"],
    result: "i32",
  },
  /** `long syscall(long number, …)` with numbers only, on another thread, where its errno is lost. */
  numbersNonblocking: {
    name: "syscall",
    parameters: ["i64", "i64", "i64", "i64", "i64", "i64"],
    result: "i32",
    nonblocking: true,
  },
  /** `long syscall(long number, int from, const char *, int to, const char *, unsigned flags)` */
  moveMount: {
    name: "syscall",
    parameters: ["i64", "i64", "buffer", "i64", "buffer", "i64"],
    result: "i32",
  },
  /** `long syscall(long number, const char *source, const char *target, const char *type, unsigned long flags, const void *data)` */
  mount: {
    name: "syscall",
    parameters: ["i64", "buffer", "buffer", "buffer", "i64", "buffer"],
    result: "i32",
  },
} as const satisfies Deno.ForeignLibraryInterface;

let opened: ReturnType<typeof open> | undefined;

function open(): Deno.DynamicLibrary<typeof SYMBOLS>["symbols"] {
  return openTable(SYMBOLS);
}

function table(): ReturnType<typeof open> {
  return opened ??= open();
}

/** Bytes that the prototypes accept. */
type Bytes = Uint8Array<ArrayBuffer>;

const FSOPEN_CLOEXEC = 1n;

/** `fsopen(2)` (Linux 5.2): a descriptor. It may load a module. */
export function fsopen(type: string): number {
  return errnoResult(
    table().pathCall(
      SYSCALL_NUMBERS.fsopen,
      cString(type) as Bytes,
      FSOPEN_CLOEXEC,
    ),
  );
}

/** `fsopen(2)` on another thread: a descriptor, or -1 without the error. */
export async function fsopenAsync(type: string): Promise<number> {
  return await table().pathCallNonblocking(
    SYSCALL_NUMBERS.fsopen,
    cString(type) as Bytes,
    FSOPEN_CLOEXEC,
  );
}

// linux/mount.h: enum fsconfig_command
const FSCONFIG_SET_FLAG = 0n;
const FSCONFIG_SET_STRING = 1n;
const FSCONFIG_CMD_CREATE = 6n;

/** `fsconfig(2)`: sets an option; `true` for one without a value. */
export function fsconfigSet(
  fd: number,
  key: string,
  value: string | true,
): number {
  const command = value === true ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING;
  return errnoResult(
    table().fsconfig(
      SYSCALL_NUMBERS.fsconfig,
      BigInt(fd),
      command,
      cString(key) as Bytes,
      value === true ? null : cString(value) as Bytes,
      0n,
    ),
  );
}

/** `fsconfig(2)`: reads the superblock, and replays a journal. */
export function fsconfigCreate(fd: number): number {
  return errnoResult(
    table().fsconfig(
      SYSCALL_NUMBERS.fsconfig,
      BigInt(fd),
      FSCONFIG_CMD_CREATE,
      null,
      null,
      0n,
    ),
  );
}

/** `fsconfig(2)` on another thread: 0, or -1 without the error. The context is unusable after a failure. */
export async function fsconfigCreateAsync(fd: number): Promise<number> {
  return await table().numbersNonblocking(
    SYSCALL_NUMBERS.fsconfig,
    BigInt(fd),
    FSCONFIG_CMD_CREATE,
    0n,
    0n,
    0n,
  );
}

/** `read(2)` */
export function read(fd: number, buffer: Uint8Array): number {
  return errnoResult(
    libc().syscall(
      SYSCALL_NUMBERS.read,
      BigInt(fd),
      buffer,
      BigInt(buffer.length),
      0n,
      null,
    ),
  );
}

// linux/mount.h: attributes of a mount
export const MOUNT_ATTR_RDONLY = 0x01;
export const MOUNT_ATTR_NOSUID = 0x02;
export const MOUNT_ATTR_NODEV = 0x04;
export const MOUNT_ATTR_NOEXEC = 0x08;
export const MOUNT_ATTR_NOATIME = 0x10;

const FSMOUNT_CLOEXEC = 1;

/** `fsmount(2)`: a descriptor of a mount that is attached to no directory. */
export function fsmount(fd: number, attributes: number): number {
  return numbersCall(SYSCALL_NUMBERS.fsmount, fd, FSMOUNT_CLOEXEC, attributes);
}

// linux/mount.h
const MOVE_MOUNT_F_EMPTY_PATH = 0x04n;
const MOVE_MOUNT_T_EMPTY_PATH = 0x40n;
const EMPTY = cString("") as Bytes;

/** `move_mount(2)`: attaches a mount to a directory, both by their descriptors. */
export function moveMount(mount: number, directory: number): number {
  return errnoResult(
    table().moveMount(
      SYSCALL_NUMBERS.move_mount,
      BigInt(mount),
      EMPTY,
      BigInt(directory),
      EMPTY,
      MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
    ),
  );
}

// linux/fs.h and sys/mount.h
const MNT_DETACH = 2n;
const UMOUNT_NOFOLLOW = 8n;

function umountFlags(isLazy: boolean): bigint {
  return UMOUNT_NOFOLLOW | (isLazy ? MNT_DETACH : 0n);
}

/** `umount2(2)`; a symbolic link is not followed. */
export function umount(path: CString, isLazy: boolean): number {
  return errnoResult(
    table().pathCall(
      SYSCALL_NUMBERS.umount2,
      path as Bytes,
      umountFlags(isLazy),
    ),
  );
}

/** `umount2(2)` on another thread, because it may take long: 0, or -1 without the error. */
export async function umountAsync(
  path: CString,
  isLazy: boolean,
): Promise<number> {
  return await table().pathCallNonblocking(
    SYSCALL_NUMBERS.umount2,
    path as Bytes,
    umountFlags(isLazy),
  );
}

/** `syncfs(2)`: writes a file system back, and returns an error that was not reported to this open file yet. */
export function syncfs(fd: number): number {
  return numbersCall(SYSCALL_NUMBERS.syncfs, fd);
}

/** `syncfs(2)` on another thread: 0, or -1 without the error. */
export async function syncfsAsync(fd: number): Promise<number> {
  return await table().numbersNonblocking(
    SYSCALL_NUMBERS.syncfs,
    BigInt(fd),
    0n,
    0n,
    0n,
    0n,
  );
}

const ST_RDONLY = 1n;

/** Checks the mount of a descriptor for read-only (`fstatfs(2)`), or returns a negative error number. */
export function isMountReadOnly(fd: number): boolean | number {
  const bytes = new Uint8Array(STATFS.size);
  const result = errnoResult(
    libc().syscall(SYSCALL_NUMBERS.fstatfs, BigInt(fd), bytes, 0n, 0n, null),
  );
  if (result < 0) return result;
  const flags = new DataView(bytes.buffer)
    .getBigUint64(STATFS.f_flags, true);
  return (flags & ST_RDONLY) !== 0n;
}

// linux/sched.h and linux/fs.h
const CLONE_NEWNS = 0x20000;
const MS_REC = 0x4000n;
const MS_SLAVE = 0x80000n;

/**
 * `unshare(2)`: a mount namespace of its own for this thread, and for the programs that it
 * starts from now on.
 */
export function unshareMounts(): number {
  return numbersCall(SYSCALL_NUMBERS.unshare, CLONE_NEWNS);
}

/**
 * `mount(2)`: stops mounts of this namespace from propagating to others. Mounts of others
 * still propagate to this one.
 */
export function stopPropagation(): number {
  return errnoResult(
    table().mount(
      SYSCALL_NUMBERS.mount,
      null,
      cString("/") as Bytes,
      null,
      MS_REC | MS_SLAVE,
      null,
    ),
  );
}
