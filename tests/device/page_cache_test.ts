import { openFile, openMemory } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { EBADF } from "../../lib/sys/errno.ts";
import { isCachedBeyond, pageSize } from "../../lib/sys/page_cache.ts";
import { kernelVersion } from "../../lib/sys/libc.ts";
import { onDevices, runOk, withScratch } from "./support.ts";

const [major, minor] = onDevices.ignore ? [0, 0] : kernelVersion()!;
const hasCacheStat = major > 6 || (major === 6 && minor >= 5);

describe("the page cache", onDevices, () => {
  it("pageSize() equals getconf", () => {
    assertEquals(`${pageSize()}`, runOk("getconf", "PAGESIZE"));
  });

  const cacheStat = {
    ignore: !hasCacheStat,
    reason: hasCacheStat ? "" : " (skipped: cachestat is of Linux 6.5)",
  };

  it(
    `isCachedBeyond() compares bytes${cacheStat.reason}`,
    cacheStat,
    withScratch((scratch) => {
      const path = scratch.image(0);
      Deno.writeFileSync(path, new Uint8Array(1 << 20));
      using file = openFile(path);
      const limits = { cached: 1 << 20, dirty: 1 << 20 };
      const size = 1n << 20n;
      assertEquals(isCachedBeyond(limits, file.fd, size), false);
      const less = { cached: (1 << 20) - 1, dirty: 1 << 20 };
      assertEquals(isCachedBeyond(less, file.fd, size), true);
      assertEquals(isCachedBeyond(limits, -1, size), -EBADF);
    }),
  );

  it(
    `isCachedBeyond() counts the whole of a large file${cacheStat.reason}`,
    cacheStat,
    withScratch((scratch) => {
      const page = new Uint8Array(pageSize());
      const size = 3 * 2 ** 30 + page.length;
      const path = scratch.image(size);
      using file = Deno.openSync(path, { write: true });
      for (const offset of [0, 2 ** 30, size - page.length]) {
        file.seekSync(offset, Deno.SeekMode.Start);
        file.writeSync(page);
      }
      using opened = openFile(path);
      const limits = (pages: number) => ({
        cached: pages * page.length,
        dirty: size,
      });
      const isBeyond = (pages: number) =>
        isCachedBeyond(limits(pages), opened.fd, BigInt(size));
      assertEquals([isBeyond(2), isBeyond(3)], [true, false]);
    }),
  );

  it(
    `isCachedBeyond() counts the whole of a sparse file of terabytes${cacheStat.reason}`,
    cacheStat,
    () => {
      using file = openMemory(2 ** 42); // the last byte is written
      const isBeyond = (cached: number) =>
        isCachedBeyond({ cached, dirty: pageSize() }, file.fd, 2n ** 42n);
      assertEquals([isBeyond(0), isBeyond(pageSize())], [true, false]);
    },
  );

  it(
    `isCachedBeyond() does not count all of a sparse file of petabytes${cacheStat.reason}`,
    cacheStat,
    () => {
      using file = openMemory(2 ** 52);
      const limits = { cached: pageSize(), dirty: pageSize() };
      assertEquals(isCachedBeyond(limits, file.fd, 2n ** 52n), true);
    },
  );
});
