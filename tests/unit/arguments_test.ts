import {
  attach,
  detach,
  find,
  Loop,
  LoopControl,
  LoopError,
  openFile,
  openMemory,
} from "@loopdev/loopdev";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { maximumBlockSize } from "../../lib/kernel/block_size.ts";
import { checkBytes, checkPath } from "../../lib/arguments.ts";
import { errnoMessage, errnoName } from "../../lib/sys/errno.ts";

// These tests have no permissions, so every refusal comes before any system call.

// deno-lint-ignore no-explicit-any
const any = (value: unknown): any => value;

describe("new Loop()", () => {
  it("refuses bad numbers", () => {
    for (const minor of [-1, -2, 1.5, NaN, Infinity, 2 ** 20, 2 ** 32 + 7]) {
      assertThrows(() => new Loop(minor), RangeError, String(minor));
    }
    assertThrows(() => new Loop(any("3")), TypeError, '"3"');
    assertThrows(() => new Loop(any(undefined)), TypeError);
    assertThrows(() => new Loop(any(3n)), TypeError, "3n");
  });

  it("refuses bad options", () => {
    assertThrows(() => new Loop(0, { dirFd: -1 }), RangeError, "dirFd");
    assertThrows(() => new Loop(0, { dirFd: 1.5 }), RangeError, "dirFd");
    assertThrows(() => new Loop(0, any({ dirFd: "3" })), TypeError, "dirFd");
    assertThrows(() => new Loop(0, any({ readOnly: 1 })), TypeError);
    assertThrows(() => new Loop(0, any({ readonly: true })), TypeError);
    assertThrows(() => new Loop(0, any(null)), TypeError);
    assertThrows(() => new Loop(0, any([])), TypeError);
  });
});

describe("Loop.open()", () => {
  it("refuses numbers that would wrap around, and bad paths", () => {
    assertThrows(() => Loop.open("/dev/loop4294967303"), RangeError);
    assertThrows(() => Loop.open("loop1048576"), RangeError);
    assertThrows(() => Loop.open("/dev/lo\0op3"), TypeError, "NUL");
    assertThrows(() => Loop.open(any(3)), TypeError);
    assertThrows(() => Loop.open(any(new URL("file:///dev/loop0"))), TypeError);
  });
});

describe("LoopControl", () => {
  it("refuses bad options", () => {
    assertThrows(() => new LoopControl({ dirFd: -1 }), RangeError);
    assertThrows(() => new LoopControl(any({ fd: 3 })), TypeError);
  });
});

describe("openFile()", () => {
  it("refuses bad paths and options", () => {
    assertThrows(() => openFile("a\0b"), TypeError, "NUL");
    assertThrows(() => openFile("a\ud800"), TypeError, "surrogate");
    assertThrows(() => openFile(any(7)), TypeError);
    assertThrows(() => openFile(new URL("https://x.org/a")), TypeError);
    assertThrows(() => openFile(new URL("file://host/a")), TypeError);
    assertThrows(() => openFile(new URL("file:///a%00b")), TypeError, "NUL");
    assertThrows(() => openFile("x", any({ readOnly: "no" })), TypeError);
    for (const symlinks of ["no", true, null]) {
      const options = any({ symlinks });
      assertThrows(() => openFile("x", options), TypeError, "symlinks");
    }
  });
});

describe("openMemory()", () => {
  it("refuses bad sizes", () => {
    for (const size of [-1, 1.5, NaN, Infinity, 2 ** 53]) {
      assertThrows(() => openMemory(size), RangeError);
    }
    assertThrows(() => openMemory(any("64")), TypeError);
    assertThrows(() => openMemory(any(undefined)), TypeError);
  });
});

describe("attach()", () => {
  it("refuses bad options", async () => {
    const refused = async (
      options: unknown,
      error: typeof RangeError | typeof TypeError,
      text: string,
    ) => {
      await assertRejects(
        () => attach("/nowhere/disk.img", any(options)),
        error,
        text,
      );
    };
    for (const offset of [-1, 1.5, NaN, 2 ** 63, 2n ** 63n, -1n]) {
      await refused({ offset }, RangeError, "offset");
      await refused({ sizelimit: offset }, RangeError, "sizelimit");
    }
    await refused({ offset: "0" }, TypeError, "offset");
    for (const blockSize of [0, 1, 513, 1000, 131072, NaN, -512]) {
      await refused({ blockSize }, RangeError, String(blockSize));
    }
    await refused({ blockSize: "512" }, TypeError, "block size");
    await refused({ reference: "x".repeat(64) }, RangeError, "reference");
    await refused({ reference: "a\0" }, RangeError, "reference");
    await refused({ autoclear: 1 }, TypeError, "autoclear");
    await refused({ minor: -1 }, RangeError, "loop number");
    await refused({ readonly: true }, TypeError, '"readonly"');
    await refused({ symlinks: "no" }, TypeError, "symlinks");
    await refused({ signal: {} }, TypeError, "signal");
    await refused({ overlap: "deny" }, TypeError, "overlap");
    await refused(null, TypeError, "options");
  });

  it("refuses values that are not a file", async () => {
    await assertRejects(() => attach(any(5)), TypeError);
    await assertRejects(() => attach(any(null)), TypeError);
    await assertRejects(() => attach({ fd: -2 }), RangeError);
    const closed = await assertRejects(() => attach({ fd: -1 }), LoopError);
    assertEquals(closed.code, "EBADF");
    await assertRejects(() => attach({ fd: any("3") }), TypeError);
    await assertRejects(() => attach("a\0"), TypeError);
  });

  it("rejects with the reason of an aborted signal", async () => {
    const reason = new Error("enough");
    const error = await assertRejects(
      () => attach("x", { signal: AbortSignal.abort(reason) }),
    );
    assertEquals(error, reason);
  });
});

describe("detach()", () => {
  it("refuses bad references and options", async () => {
    await assertRejects(() => detach(-1), RangeError);
    await assertRejects(() => detach(2 ** 32), RangeError);
    await assertRejects(() => detach({ minor: 1.5 }), RangeError);
    await assertRejects(() => detach(any({})), TypeError);
    await assertRejects(() => detach(any(null)), TypeError);
    await assertRejects(
      () => detach({ minor: 0, diskSequence: any("x") }),
      TypeError,
    );
    await assertRejects(
      () => detach({ minor: 0, diskSequence: 1.5 }),
      RangeError,
    );
    await assertRejects(() => detach(any(new URL("file:///x"))), TypeError);
    await assertRejects(() => detach(0, { timeout: -1 }), RangeError);
    await assertRejects(() => detach(0, { timeout: NaN }), RangeError);
    await assertRejects(() => detach(0, any({ lazy: 1 })), TypeError);
    await assertRejects(() => detach(0, any({ force: true })), TypeError);
  });
});

describe("find()", () => {
  it("refuses bad paths and offsets", () => {
    assertThrows(() => find("a\0"), TypeError);
    assertThrows(() => find("a", { offset: -1 }), RangeError);
  });
});

describe("checkBytes()", () => {
  it("accepts every value that the kernel supports, exactly", () => {
    assertEquals(checkBytes(0, "offset"), 0n);
    assertEquals(checkBytes(2 ** 53 - 1, "offset"), 2n ** 53n - 1n);
    assertEquals(checkBytes(2n ** 63n - 1n, "offset"), 2n ** 63n - 1n);
    assertThrows(() => checkBytes(2 ** 53, "offset"), RangeError, "bigint");
  });
});

describe("checkPath()", () => {
  it("returns the exact bytes of a path or URL", () => {
    const bytes = (path: string | URL) => [...checkPath(path).bytes];
    assertEquals(bytes("é"), [0xc3, 0xa9, 0]);
    assertEquals(bytes(new URL("file:///a%ffb%2f%C3%A9")), [
      0x2f,
      0x61,
      0xff,
      0x62,
      0x2f,
      0xc3,
      0xa9,
      0,
    ]);
    assertEquals(bytes(new URL("file:///100%")), [
      ...new TextEncoder().encode("/100%"),
      0,
    ]);
    assertEquals(checkPath(new URL("file:///a%20b")).text, "/a b");
  });
});

describe("maximumBlockSize()", () => {
  it("is the page size, and 64 KiB from Linux 6.15 on", () => {
    assertEquals(maximumBlockSize([6, 14], 4096), 4096);
    assertEquals(maximumBlockSize([5, 10], 16384), 16384);
    assertEquals(maximumBlockSize([6, 15], 4096), 65536);
    assertEquals(maximumBlockSize([7, 0], 4096), 65536);
    assertEquals(maximumBlockSize(undefined, 4096), 4096);
  });
});

describe("errnoName()", () => {
  it("returns the names of Linux error numbers", () => {
    assertEquals(errnoName(16), "EBUSY");
    assertEquals(errnoMessage(16), "device or resource busy");
    assertEquals(errnoName(132), "ERFKILL");
    assertEquals(errnoName(4095), "E4095");
    assertEquals(errnoMessage(4095), "unknown error");
  });
});
