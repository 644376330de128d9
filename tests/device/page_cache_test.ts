import { openFile } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { pageCacheOf, pageSize } from "../../lib/sys/page_cache.ts";
import { kernelVersion } from "../../lib/sys/libc.ts";
import { onDevices, runOk, withScratch } from "./support.ts";

const [major, minor] = onDevices.ignore ? [0, 0] : kernelVersion()!;
const hasCacheStat = major > 6 || (major === 6 && minor >= 5);

describe("the page cache", onDevices, () => {
  it("pageSize() equals getconf", () => {
    assertEquals(`${pageSize()}`, runOk("getconf", "PAGESIZE"));
  });

  it(
    "pageCacheOf() counts bytes" +
      (hasCacheStat ? "" : " (skipped: cachestat is of Linux 6.5)"),
    { ignore: !hasCacheStat },
    withScratch((scratch) => {
      const path = scratch.image(0);
      Deno.writeFileSync(path, new Uint8Array(1 << 20));
      using file = openFile(path);
      const cache = pageCacheOf(file.fd);
      assert(typeof cache !== "number");
      assertEquals(cache.cached, 1 << 20);
      assert(cache.dirty <= 1 << 20);
    }),
  );
});
