/**
 * Offsets of fields in kernel structures that are read and written in place, by their C
 * names. Identical on x86_64 and aarch64, see `tests/unit/layouts_test.ts`.
 */

/** `struct statx`, linux/stat.h. */
export const STATX = {
  size: 256,
  stx_mask: 0,
  stx_attributes: 8,
  stx_nlink: 16,
  stx_uid: 20,
  stx_mode: 28,
  stx_ino: 32,
  stx_size: 40,
  stx_rdev_major: 128,
  stx_rdev_minor: 132,
  stx_dev_major: 136,
  stx_dev_minor: 140,
  stx_mnt_id: 144,
  stx_dio_offset_align: 156,
} as const;

/** `struct statfs`, asm-generic/statfs.h. */
export const STATFS = { size: 120, f_flags: 80 } as const;

/** `struct flock`, asm-generic/fcntl.h. */
export const FLOCK = { size: 32, l_type: 0, l_start: 8, l_len: 16 } as const;

/** `struct open_how`, linux/openat2.h. */
export const OPEN_HOW = { size: 24, flags: 0, resolve: 16 } as const;

/** `struct linux_dirent64`, linux/dirent.h. */
export const DIRENT64 = { d_reclen: 16, d_type: 18, d_name: 19 } as const;

/** `struct cachestat`, linux/mman.h. */
export const CACHESTAT = {
  size: 40,
  nr_cache: 0,
  nr_dirty: 8,
  nr_writeback: 16,
} as const;

/** `struct blkpg_ioctl_arg`, linux/blkpg.h. */
export const BLKPG_IOCTL_ARG = {
  size: 24,
  op: 0,
  datalen: 8,
  data: 16,
} as const;

/** `struct blkpg_partition`, linux/blkpg.h. */
export const BLKPG_PARTITION = {
  size: 152,
  start: 0,
  length: 8,
  pno: 16,
} as const;

/** `sizeof(struct loop_info64)`. */
export const LOOP_INFO64_SIZE = 232;
/** `sizeof(struct loop_config)`. */
export const LOOP_CONFIG_SIZE = 304;

/** Offsets of the fields of `struct loop_info64`. */
export const LOOP_INFO64_OFFSETS = {
  device: 0,
  inode: 8,
  rdevice: 16,
  offset: 24,
  sizelimit: 32,
  number: 40,
  encryptType: 44,
  encryptKeySize: 48,
  flags: 52,
  fileName: 56,
  cryptName: 120,
  encryptKey: 184,
  init: 216,
} as const;

/** Offsets of the fields of `struct loop_config`. */
export const LOOP_CONFIG_OFFSETS = {
  fd: 0,
  blockSize: 4,
  info: 8,
  reserved: 240,
} as const;

/** `Elf64_Ehdr`, linux/elf.h. */
export const ELF64 = { size: 64, e_phoff: 32, e_phnum: 56 } as const;
/** `Elf64_Phdr`, linux/elf.h. */
export const ELF64_PHDR = {
  size: 56,
  p_type: 0,
  p_offset: 8,
  p_filesz: 32,
} as const;
/** Type of the segment that names the loader, linux/elf.h. */
export const PT_INTERP = 3;
