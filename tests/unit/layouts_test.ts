// deno-lint-ignore-file camelcase -- names of C
/**
 * Checks the structures and numbers that depend on the architecture, for both
 * architectures: they are computed from the C declarations by the rules of the two
 * ABIs.
 */
import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  BLKBSZGET,
  BLKBSZSET,
  BLKGETDISKSEQ,
  BLKGETSIZE64,
  BLKPG,
  BLKROSET,
} from "../../lib/sys/blk_uapi.ts";
import {
  BLKPG_IOCTL_ARG,
  BLKPG_PARTITION,
  CACHESTAT,
  DIRENT64,
  ELF64,
  ELF64_PHDR,
  FLOCK,
  LOOP_CONFIG_OFFSETS,
  LOOP_CONFIG_SIZE,
  LOOP_INFO64_OFFSETS,
  LOOP_INFO64_SIZE,
  OPEN_HOW,
  STATFS,
  STATX,
} from "../../lib/sys/layouts.ts";
import { libraryPaths } from "../../lib/sys/find_libc.ts";
import { OPEN_FLAGS } from "../../lib/sys/libc.ts";

/** Sizes of the C types, which are also their alignments. */
const ABIS: Record<string, Record<string, number>> = {
  // System V ABI, AMD64 supplement, figure 3.1
  x86_64: { "void *": 8, long: 8, "long long": 8, int: 4, short: 2, char: 1 },
  // Procedure Call Standard for the Arm 64-bit Architecture, tables 1 and 3 (LP64)
  aarch64: { "void *": 8, long: 8, "long long": 8, int: 4, short: 2, char: 1 },
};

/**
 * Types of the kernel on both architectures: asm-generic/int-ll64.h and
 * asm-generic/posix_types.h.
 */
const TYPES: Record<string, string> = {
  __u64: "long long",
  __s64: "long long",
  u64: "long long",
  s64: "long long",
  __u32: "int",
  __s32: "int",
  __u16: "short",
  __u8: "char",
  __kernel_off_t: "long",
  __kernel_pid_t: "int",
};

interface Type {
  readonly size: number;
  readonly alignment: number;
}

interface Struct extends Type {
  readonly offsets: Record<string, number>;
}

/** Computes the layout of a structure from its C declaration. */
function layOut(
  abi: string,
  declaration: string,
  structs: Record<string, Struct> = {},
): Struct {
  const offsets: Record<string, number> = {};
  let [at, widest] = [0, 1];
  for (const line of declaration.split(";")) {
    const match = /^\s*([\w *]*?[ *])\s*(\w+)((?:\[\d*\])?)\s*$/.exec(line);
    if (match === null) continue;
    const [, words, name, array] = match;
    const word = words!.trim().replace(/^unsigned /, "");
    const plain = ABIS[abi]![TYPES[word] ?? word];
    const type = structs[word] ?? { size: plain!, alignment: plain! };
    at = Math.ceil(at / type.alignment) * type.alignment;
    offsets[name!] = at;
    const count = array === "" ? 1 : Number(array!.slice(1, -1));
    at += type.size * count;
    widest = Math.max(widest, type.alignment);
  }
  return {
    size: Math.ceil(at / widest) * widest,
    alignment: widest,
    offsets,
  };
}

const LOOP_INFO64 = `
  __u64 lo_device; __u64 lo_inode; __u64 lo_rdevice; __u64 lo_offset;
  __u64 lo_sizelimit; __u32 lo_number; __u32 lo_encrypt_type;
  __u32 lo_encrypt_key_size; __u32 lo_flags; __u8 lo_file_name[64];
  __u8 lo_crypt_name[64]; __u8 lo_encrypt_key[32]; __u64 lo_init[2]`;
const LOOP_CONFIG = `
  __u32 fd; __u32 block_size; struct loop_info64 info; __u64 __reserved[8]`;
const STATX_TIMESTAMP = `__s64 tv_sec; __u32 tv_nsec; __s32 __reserved`;
const STATX_DECLARATION = `
  __u32 stx_mask; __u32 stx_blksize; __u64 stx_attributes; __u32 stx_nlink;
  __u32 stx_uid; __u32 stx_gid; __u16 stx_mode; __u16 __spare0[1]; __u64 stx_ino;
  __u64 stx_size; __u64 stx_blocks; __u64 stx_attributes_mask;
  struct statx_timestamp stx_atime; struct statx_timestamp stx_btime;
  struct statx_timestamp stx_ctime; struct statx_timestamp stx_mtime;
  __u32 stx_rdev_major; __u32 stx_rdev_minor; __u32 stx_dev_major;
  __u32 stx_dev_minor; __u64 stx_mnt_id; __u32 stx_dio_mem_align;
  __u32 stx_dio_offset_align; __u64 __spare3[12]`;
const STATFS_DECLARATION = `
  long f_type; long f_bsize; __u64 f_blocks; __u64 f_bfree; __u64 f_bavail;
  __u64 f_files; __u64 f_ffree; int f_fsid[2]; long f_namelen; long f_frsize;
  long f_flags; long f_spare[4]`;
const FLOCK_DECLARATION = `
  short l_type; short l_whence; __kernel_off_t l_start; __kernel_off_t l_len;
  __kernel_pid_t l_pid`;
const OPEN_HOW_DECLARATION = `__u64 flags; __u64 mode; __u64 resolve`;
const DIRENT64_DECLARATION = `
  u64 d_ino; s64 d_off; unsigned short d_reclen; unsigned char d_type;
  char d_name[0]`;
const CACHESTAT_DECLARATION = `
  __u64 nr_cache; __u64 nr_dirty; __u64 nr_writeback; __u64 nr_evicted;
  __u64 nr_recently_evicted`;
const ELF64_DECLARATION = `
  unsigned char e_ident[16]; __u16 e_type; __u16 e_machine; __u32 e_version;
  __u64 e_entry; __u64 e_phoff; __u64 e_shoff; __u32 e_flags; __u16 e_ehsize;
  __u16 e_phentsize; __u16 e_phnum; __u16 e_shentsize; __u16 e_shnum;
  __u16 e_shstrndx`;
const ELF64_PHDR_DECLARATION = `
  __u32 p_type; __u32 p_flags; __u64 p_offset; __u64 p_vaddr; __u64 p_paddr;
  __u64 p_filesz; __u64 p_memsz; __u64 p_align`;
const BLKPG_IOCTL_ARG_DECLARATION =
  `int op; int flags; int datalen; void *data`;
const BLKPG_PARTITION_DECLARATION = `
  long long start; long long length; int pno; char devname[64];
  char volname[64]`;

/** Checks a table against the structure. */
function assertLayout(table: Record<string, number>, struct: Struct): void {
  const actual = Object.fromEntries(
    Object.keys(table).map((name) => [
      name,
      name === "size" && !("size" in struct.offsets)
        ? struct.size
        : struct.offsets[name]!,
    ]),
  );
  assertEquals(table, actual);
}

/** Converts names: `encryptKeySize` to `lo_encrypt_key_size`. */
function inC(table: Record<string, number>, prefix: string): typeof table {
  return Object.fromEntries(
    Object.entries(table).map(([name, offset]) => [
      prefix + name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      offset,
    ]),
  );
}

for (const abi of Object.keys(ABIS)) {
  describe(`structures on ${abi}`, () => {
    const info = layOut(abi, LOOP_INFO64);

    it("struct loop_info64", () => {
      assertEquals(info.size, LOOP_INFO64_SIZE);
      assertLayout(inC(LOOP_INFO64_OFFSETS, "lo_"), info);
      assertEquals(Object.keys(LOOP_INFO64_OFFSETS).length, 13);
    });

    it("struct loop_config", () => {
      const config = layOut(abi, LOOP_CONFIG, { "struct loop_info64": info });
      assertEquals(config.size, LOOP_CONFIG_SIZE);
      const { reserved, ...fields } = LOOP_CONFIG_OFFSETS;
      assertLayout(inC(fields, ""), config);
      assertEquals(config.offsets.__reserved, reserved);
    });

    it("struct statx", () => {
      const time = layOut(abi, STATX_TIMESTAMP);
      const structs = { "struct statx_timestamp": time };
      assertLayout(STATFS, layOut(abi, STATFS_DECLARATION));
      assertLayout(STATX, layOut(abi, STATX_DECLARATION, structs));
    });

    it("struct flock, open_how, linux_dirent64, cachestat", () => {
      assertLayout(FLOCK, layOut(abi, FLOCK_DECLARATION));
      assertLayout(OPEN_HOW, layOut(abi, OPEN_HOW_DECLARATION));
      assertLayout(DIRENT64, layOut(abi, DIRENT64_DECLARATION));
      assertLayout(CACHESTAT, layOut(abi, CACHESTAT_DECLARATION));
    });

    it("Elf64_Ehdr and Elf64_Phdr", () => {
      assertLayout(ELF64, layOut(abi, ELF64_DECLARATION));
      assertLayout(ELF64_PHDR, layOut(abi, ELF64_PHDR_DECLARATION));
    });

    it("struct blkpg_ioctl_arg and blkpg_partition", () => {
      assertLayout(BLKPG_IOCTL_ARG, layOut(abi, BLKPG_IOCTL_ARG_DECLARATION));
      assertLayout(BLKPG_PARTITION, layOut(abi, BLKPG_PARTITION_DECLARATION));
    });

    it("request numbers that contain the size of their argument", () => {
      // Encoding in asm-generic/ioctl.h, which both use: direction, size, type, number.
      const read = (type: number, number: number, size: number) =>
        (2 * 2 ** 30) + (size << 16) + (type << 8) + number;
      const write = (type: number, number: number, size: number) =>
        (1 * 2 ** 30) + (size << 16) + (type << 8) + number;
      const none = (type: number, number: number) => (type << 8) + number;
      assertEquals(BLKGETSIZE64, read(0x12, 114, ABIS[abi]!.long!)); // size_t
      assertEquals(BLKBSZGET, read(0x12, 112, ABIS[abi]!.long!)); // size_t
      assertEquals(BLKBSZSET, write(0x12, 113, ABIS[abi]!.long!)); // size_t
      assertEquals(BLKGETDISKSEQ, read(0x12, 128, 8)); // __u64
      assertEquals([BLKROSET, BLKPG], [none(0x12, 93), none(0x12, 105)]);
    });
  });
}

describe("values that differ between x86_64 and aarch64", () => {
  it("flags of open(2): asm-generic/fcntl.h, and asm/fcntl.h of arm64", () => {
    assertEquals(OPEN_FLAGS, {
      x86_64: {
        O_DIRECT: 0o40000,
        O_DIRECTORY: 0o200000,
        O_NOFOLLOW: 0o400000,
      },
      aarch64: {
        O_DIRECT: 0o200000,
        O_DIRECTORY: 0o40000,
        O_NOFOLLOW: 0o100000,
      },
    });
  });

  it("paths of the C library", () => {
    for (const arch of ["x86_64", "aarch64"]) {
      assertEquals(
        libraryPaths(false, arch)[0],
        `/lib/${arch}-linux-gnu/libc.so.6`,
      );
      assertEquals(libraryPaths(true, arch), [
        `/lib/ld-musl-${arch}.so.1`,
        `/lib/libc.musl-${arch}.so.1`,
      ]);
    }
  });
});
