import {
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_DIRECT_IO,
  LO_FLAGS_PARTSCAN,
  LO_FLAGS_READ_ONLY,
  Loop,
  LOOP_CHANGE_FD,
  LOOP_CLR_FD,
  LOOP_CONFIGURE,
  LOOP_CTL_ADD,
  LOOP_CTL_GET_FREE,
  LOOP_CTL_REMOVE,
  LOOP_GET_STATUS,
  LOOP_GET_STATUS64,
  LOOP_SET_BLOCK_SIZE,
  LOOP_SET_CAPACITY,
  LOOP_SET_DIRECT_IO,
  LOOP_SET_FD,
  LOOP_SET_STATUS,
  LOOP_SET_STATUS64,
  LoopConfig,
  LoopInfo64,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { majorMinor, makedev } from "../../lib/sys/stat.ts";
import {
  BLKFLSBUF,
  BLKGETDISKSEQ,
  BLKGETSIZE64,
  BLKROGET,
  BLKROSET,
  BLKSSZGET,
} from "../../lib/sys/blk_uapi.ts";
import { SYSTEM_CALLS } from "../../lib/sys/libc.ts";

describe("constants", () => {
  it("have the numbers of linux/loop.h", () => {
    assertEquals(
      [
        LOOP_SET_FD,
        LOOP_CLR_FD,
        LOOP_SET_STATUS,
        LOOP_GET_STATUS,
        LOOP_SET_STATUS64,
        LOOP_GET_STATUS64,
        LOOP_CHANGE_FD,
        LOOP_SET_CAPACITY,
        LOOP_SET_DIRECT_IO,
        LOOP_SET_BLOCK_SIZE,
        LOOP_CONFIGURE,
      ],
      [
        0x4c00,
        0x4c01,
        0x4c02,
        0x4c03,
        0x4c04,
        0x4c05,
        0x4c06,
        0x4c07,
        0x4c08,
        0x4c09,
        0x4c0a,
      ],
    );
    assertEquals(
      [LOOP_CTL_ADD, LOOP_CTL_REMOVE, LOOP_CTL_GET_FREE],
      [0x4c80, 0x4c81, 0x4c82],
    );
    assertEquals(
      [
        LO_FLAGS_READ_ONLY,
        LO_FLAGS_AUTOCLEAR,
        LO_FLAGS_PARTSCAN,
        LO_FLAGS_DIRECT_IO,
      ],
      [1, 4, 8, 16],
    );
    assertEquals(Loop.MAJOR, 7);
  });

  it("have the numbers of linux/fs.h", () => {
    assertEquals(
      [BLKROSET, BLKROGET, BLKFLSBUF, BLKSSZGET, BLKGETSIZE64, BLKGETDISKSEQ],
      [0x125d, 0x125e, 0x1261, 0x1268, 0x80081272, 0x80081280],
    );
  });

  it("have the system call numbers of both architectures", () => {
    assertEquals(SYSTEM_CALLS.x86_64, {
      read: 0n,
      syncfs: 306n,
      fstatfs: 138n,
      umount2: 166n,
      mount: 165n,
      unshare: 272n,
      move_mount: 429n,
      fsopen: 430n,
      fsconfig: 431n,
      fsmount: 432n,
      close: 3n,
      openat: 257n,
      pread64: 17n,
      pwrite64: 18n,
      flock: 73n,
      fsync: 74n,
      getdents64: 217n,
      mkdirat: 258n,
      mknodat: 259n,
      unlinkat: 263n,
      readlinkat: 267n,
      fchmodat: 268n,
      sync_file_range: 277n,
      kcmp: 312n,
      statx: 332n,
      openat2: 437n,
      cachestat: 451n,
    });
    assertEquals(SYSTEM_CALLS.aarch64, {
      read: 63n,
      syncfs: 267n,
      fstatfs: 44n,
      umount2: 39n,
      mount: 40n,
      unshare: 97n,
      move_mount: 429n,
      fsopen: 430n,
      fsconfig: 431n,
      fsmount: 432n,
      close: 57n,
      openat: 56n,
      pread64: 67n,
      pwrite64: 68n,
      flock: 32n,
      fsync: 82n,
      getdents64: 61n,
      mkdirat: 34n,
      mknodat: 33n,
      unlinkat: 35n,
      readlinkat: 78n,
      fchmodat: 53n,
      sync_file_range: 84n,
      kcmp: 272n,
      statx: 291n,
      openat2: 437n,
      cachestat: 451n,
    });
  });
});

describe("makedev()", () => {
  it("encodes as makedev(3), and majorMinor() decodes it", () => {
    assertEquals(makedev(7, 3), 0x703);
    assertEquals(makedev(10, 237), 0xaed);
    assertEquals(makedev(7, 0xfffff), 0xfff007ff);
    assertEquals(makedev(0xfff, 0x12345), 0x123fff45);
    const pairs = [[7, 0], [259, 70000], [4095, 1048575]] as const;
    for (const [major, minor] of pairs) {
      assertEquals(majorMinor(makedev(major, minor)), [major, minor]);
    }
  });
});

/** Each field, its offset, and the bytes it consists of. */
const NUMBERS = [
  ["device", 0, 8],
  ["inode", 8, 8],
  ["rdevice", 16, 8],
  ["offset", 24, 8],
  ["sizelimit", 32, 8],
  ["number", 40, 4],
  ["encryptType", 44, 4],
  ["encryptKeySize", 48, 4],
  ["flags", 52, 4],
] as const;

/** Returns the bytes that differ from zero. */
function written(bytes: Uint8Array): Record<number, number> {
  const found: Record<number, number> = {};
  bytes.forEach((byte, at) => {
    if (byte !== 0) found[at] = byte;
  });
  return found;
}

describe("LoopInfo64", () => {
  it("has 232 bytes", () => {
    assertEquals(new LoopInfo64().bytes.length, 232);
    assertThrows(() => new LoopInfo64(new Uint8Array(231)), RangeError);
    assertThrows(() => new LoopInfo64(new Uint8Array(233)), RangeError);
    assertThrows(
      () => new LoopInfo64([] as unknown as Uint8Array),
      TypeError,
    );
  });

  for (const [field, offset, size] of NUMBERS) {
    it(`has ${field} at ${offset}, little-endian, ${size} bytes`, () => {
      const info = new LoopInfo64();
      const expected: Record<number, number> = {};
      for (let at = 0; at < size; at++) expected[offset + at] = at + 1;
      if (size === 8) {
        const long = info as unknown as Record<string, bigint>;
        long[field] = 0x0807060504030201n;
        assertEquals(long[field], 0x0807060504030201n);
        assertThrows(() => long[field] = 1n << 64n, RangeError);
        assertThrows(() => long[field] = -1n, RangeError);
        assertThrows(() => long[field] = 1 as unknown as bigint, TypeError);
      } else {
        const short = info as unknown as Record<string, number>;
        short[field] = 0x04030201;
        assertEquals(short[field], 0x04030201);
        assertThrows(() => short[field] = 2 ** 32, RangeError);
        assertThrows(() => short[field] = -1, RangeError);
        assertThrows(() => short[field] = 1.5, RangeError);
        assertThrows(() => short[field] = 1n as unknown as number, TypeError);
      }
      assertEquals(written(info.bytes), expected);
    });
  }

  it("has fileName at 56 and cryptName at 120, 63 bytes of UTF-8", () => {
    const info = new LoopInfo64();
    info.fileName = "é";
    info.cryptName = "AB";
    assertEquals(written(info.bytes), {
      56: 0xc3,
      57: 0xa9,
      120: 0x41,
      121: 0x42,
    });
    info.fileName = "x".repeat(63);
    assertEquals(info.bytes[119], 0);
    assertEquals(info.fileName.length, 63);
    info.fileName = "short"; // nothing of the long name is left
    assertEquals(info.fileName, "short");
    assertEquals(info.bytes.slice(61, 119), new Uint8Array(58));
    assertThrows(() => info.fileName = "x".repeat(64), RangeError);
    assertThrows(() => info.fileName = "é".repeat(32), RangeError);
    assertThrows(() => info.fileName = "a\0b", RangeError);
    assertThrows(() => info.fileName = "\ud800", RangeError);
    assertThrows(() => info.fileName = 1 as unknown as string, TypeError);
    assertEquals(info.fileName, "short");
  });

  it("reads a name that fills its field and one that is not UTF-8", () => {
    const info = new LoopInfo64();
    info.bytes.fill(0x61, 56, 120);
    assertEquals(info.fileName, "a".repeat(64));
    info.bytes.fill(0xff, 56, 57);
    assertEquals(info.fileName, "\ufffd" + "a".repeat(63));
  });

  it("has encryptKey at 184 and init at 216", () => {
    const info = new LoopInfo64();
    info.encryptKey = new Uint8Array(32).fill(7);
    info.init = [1n, 2n];
    const expected: Record<number, number> = { 216: 1, 224: 2 };
    for (let at = 184; at < 216; at++) expected[at] = 7;
    assertEquals(written(info.bytes), expected);
    assertEquals(info.encryptKey, new Uint8Array(32).fill(7));
    assertEquals(info.init, [1n, 2n]);
    assertThrows(() => info.encryptKey = new Uint8Array(31), RangeError);
  });

  it("keeps bytes that it does not know", () => {
    const bytes = Uint8Array.from({ length: 232 }, (_, at) => at);
    const info = new LoopInfo64(bytes);
    info.offset = 0n;
    const expected = Uint8Array.from({ length: 232 }, (_, at) => at);
    expected.fill(0, 24, 32);
    assertEquals(info.bytes, expected);
    assert(info.bytes === bytes);
  });
});

describe("LoopConfig", () => {
  it("has 304 bytes, with fd at 0, blockSize at 4 and info at 8", () => {
    const config = new LoopConfig();
    assertEquals(config.bytes.length, 304);
    config.fd = 0x04030201;
    config.blockSize = 0x08070605;
    config.info.device = 9n;
    config.info.offset = 10n;
    config.info.init = [0n, 11n];
    assertEquals(written(config.bytes), {
      0: 1,
      1: 2,
      2: 3,
      3: 4,
      4: 5,
      5: 6,
      6: 7,
      7: 8,
      8: 9,
      32: 10,
      232: 11,
    });
    assertEquals(config.fd, 0x04030201);
    assertEquals(config.blockSize, 0x08070605);
    assertThrows(() => config.fd = -1, RangeError);
    assertThrows(() => new LoopConfig(new Uint8Array(232)), RangeError);
  });

  it("is a view of the bytes that it was given", () => {
    const bytes = new Uint8Array(400).subarray(50, 354);
    const config = new LoopConfig(bytes);
    config.info.sizelimit = 5n;
    assertEquals(bytes[40], 5);
  });
});
