/** Examines files: `statx(2)`, types of files, and device numbers. */
import { EACCES } from "./errno.ts";
import { STATX } from "./layouts.ts";
import {
  type CString,
  cString,
  errnoResult,
  libc,
  SYSCALL_NUMBERS,
} from "./libc.ts";

/** Result of `statx(2)` for a file. */
export interface Stat {
  /** The type and permissions, as in `st_mode`. */
  readonly mode: number;
  /** The number of its names. */
  readonly links: number;
  /** The user ID of its owner. */
  readonly owner: number;
  /** The size in bytes; 0 for a device. */
  readonly size: bigint;
  readonly inode: bigint;
  /** The number of the file system that holds the file, encoded as in `st_dev`. */
  readonly device: number;
  /** The number of the device that a device node represents, encoded as in `st_rdev`. */
  readonly rdev: number;
}

export const S_IFMT = 0o170000;
export const S_IFCHR = 0o020000;
export const S_IFDIR = 0o040000;
export const S_IFBLK = 0o060000;
export const S_IFREG = 0o100000;

/** Returns `true` if a file is a block device. */
export function isBlockDevice({ mode }: Pick<Stat, "mode">): boolean {
  return (mode & S_IFMT) === S_IFBLK;
}

/** Returns `true` if a file is a regular file. */
export function isRegularFile({ mode }: Pick<Stat, "mode">): boolean {
  return (mode & S_IFMT) === S_IFREG;
}

/** Encodes a device number as in `stat(2)`: `makedev(3)`. */
export function makedev(major: number, minor: number): number {
  // Encoded in 64 bits; numbers of the kernel, of 12 and 20 bits, fill only the lower
  // 32.
  return ((minor & 0xff) | ((major & 0xfff) << 8) |
    ((minor & 0xfff00) << 12)) >>>
    0;
}

/** Returns the major and minor number of a device number. */
export function majorMinor(device: number): [major: number, minor: number] {
  return [
    (device >>> 8) & 0xfff,
    (device & 0xff) | ((device >>> 12) & 0xfff00),
  ];
}

// linux/stat.h: struct statx
const STATX_BASIC_STATS = 0x7ff;
const STATX_DIOALIGN = 0x2000;
const STATX_MNT_ID = 0x1000;
const STATX_MNT_ID_UNIQUE = 0x4000;
const STATX_ATTR_MOUNT_ROOT = 0x2000;
const AT_EMPTY_PATH = 0x1000;
/** Examines a symbolic link itself. */
export const AT_SYMLINK_NOFOLLOW = 0x100;
/** Uses cached attributes instead of asking a file server. */
export const AT_STATX_DONT_SYNC = 0x4000;
const statxBytes = new Uint8Array(STATX.size);
const statxView = new DataView(statxBytes.buffer);

function statxCall(
  directory: number,
  path: CString,
  flags: number,
  mask: number,
): number {
  return errnoResult(
    libc().syscall(
      SYSCALL_NUMBERS.statx,
      BigInt(directory),
      path,
      BigInt(flags),
      BigInt(mask),
      statxBytes,
    ),
  );
}

/** Returns the number of the file system that the last `statx(2)` reported. */
function fileSystemFound(): number {
  return makedev(
    statxView.getUint32(STATX.stx_dev_major, true),
    statxView.getUint32(STATX.stx_dev_minor, true),
  );
}

function statx(
  directory: number,
  path: CString,
  flags: number,
): Stat | number {
  const result = statxCall(directory, path, flags, STATX_BASIC_STATS);
  if (result < 0) return result;
  return {
    mode: statxView.getUint16(STATX.stx_mode, true),
    links: statxView.getUint32(STATX.stx_nlink, true),
    owner: statxView.getUint32(STATX.stx_uid, true),
    inode: statxView.getBigUint64(STATX.stx_ino, true),
    size: statxView.getBigUint64(STATX.stx_size, true),
    rdev: makedev(
      statxView.getUint32(STATX.stx_rdev_major, true),
      statxView.getUint32(STATX.stx_rdev_minor, true),
    ),
    device: fileSystemFound(),
  };
}

/** `statx(2)` of a path. Follows symbolic links unless the flags say otherwise. */
export function statAt(
  directory: number,
  path: CString,
  flags = 0,
): Stat | number {
  return statx(directory, path, flags);
}

const EMPTY = cString("");

/** `statx(2)` of a descriptor. */
export function statOf(fd: number, flags = 0): Stat | number {
  return statx(fd, EMPTY, AT_EMPTY_PATH | flags);
}

/**
 * Returns the number of the file system that holds a file, if it is a FUSE mount of
 * another user that is closed to this process: it reveals nothing else about its files.
 * Otherwise returns a negative error number.
 */
export function closedFileSystemAt(
  directory: number,
  path: CString,
  flags = 0,
): number {
  const result = statxCall(directory, path, flags, 0);
  if (result < 0) return result;
  const known = statxView.getUint32(STATX.stx_mask, true) & STATX_BASIC_STATS;
  return known !== 0 ? -EACCES : fileSystemFound();
}

/**
 * Returns the alignment that direct I/O to a file requires, in bytes: 0 if it does not
 * support direct I/O, `undefined` if unknown (before Linux 6.1, and on some file
 * systems).
 */
export function directIoAlignment(fd: number): number | undefined {
  const result = statxCall(fd, EMPTY, AT_EMPTY_PATH, STATX_DIOALIGN);
  const mask = statxView.getUint32(STATX.stx_mask, true);
  if (result < 0 || (mask & STATX_DIOALIGN) === 0) return undefined;
  return statxView.getUint32(STATX.stx_dio_offset_align, true);
}

/** Identity of a mount. */
export interface MountIdentity {
  /** Mount ID. From Linux 6.8 on the kernel never reuses it. */
  readonly id: bigint;
  /** Number of the file system, encoded as in `st_dev`. */
  readonly device: number;
  /** True for the root directory of the mount. */
  readonly isRoot: boolean;
}

/** Returns the mount that a path is on (Linux 5.8), without asking a file server. */
export function mountAt(
  directory: number,
  path: CString,
  flags = 0,
): MountIdentity | number {
  const result = statxCall(
    directory,
    path,
    AT_STATX_DONT_SYNC | flags,
    STATX_MNT_ID | STATX_MNT_ID_UNIQUE,
  );
  if (result < 0) return result;
  return {
    id: statxView.getBigUint64(STATX.stx_mnt_id, true),
    device: fileSystemFound(),
    isRoot: (statxView.getUint32(STATX.stx_attributes, true) &
      STATX_ATTR_MOUNT_ROOT) !== 0,
  };
}

/** Returns the mount that the file of a descriptor is on. */
export function mountOf(fd: number): MountIdentity | number {
  return mountAt(fd, EMPTY, AT_EMPTY_PATH);
}

/** Returns the mount ID in `mountinfo` of a descriptor or path. */
export function mountNumberAt(
  directory: number,
  path: CString = EMPTY,
): number {
  const flags = AT_STATX_DONT_SYNC | (path === EMPTY ? AT_EMPTY_PATH : 0);
  const result = statxCall(directory, path, flags, STATX_MNT_ID);
  if (result < 0) return result;
  return Number(statxView.getBigUint64(STATX.stx_mnt_id, true));
}
