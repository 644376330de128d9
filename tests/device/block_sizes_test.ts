/** Tests every block size: data written through the page cache must be in the file. */
import { attach, Loop, openFile } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { checkBlockSize } from "../../lib/kernel/block_size.ts";
import { pageCacheBlockSize } from "../../lib/kernel/loop.ts";
import { isSoon, onDevices, OwnDevice, runOk, withScratch } from "./support.ts";

const MiB = 1 << 20;

/** Block sizes that this kernel supports. */
const SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
  .filter((size) => {
    try {
      checkBlockSize(size);
      return true;
    } catch {
      return false;
    }
  });

/** Writes through the page cache of a device, like another program, and writes back. */
function fill(path: string, byte: number): void {
  runOk(
    "bash",
    "-c",
    `head -c 1M /dev/zero | tr '\\0' '\\${
      byte.toString(8)
    }' | dd of='${path}' bs=64K iflag=fullblock conv=fsync,notrunc status=none`,
  );
}

/**
 * Checks that all bytes are in the file, and that the device can write the blocks of
 * its page cache.
 */
function check(loop: Loop, file: string, blockSize: number): void {
  const byte = 64 + Math.log2(blockSize);
  assertEquals(loop.getBlockSize(), blockSize);
  assert(pageCacheBlockSize(loop) >= blockSize);
  fill(loop.path, byte);
  const content = Deno.readFileSync(file);
  assertEquals(content.length, MiB);
  assert(content.every((found) => found === byte), `blocks of ${blockSize}`);
}

describe(
  "data written through the page cache is in the file",
  onDevices,
  () => {
    it(
      "attach() with each block size",
      withScratch(async (scratch) => {
        const path = scratch.image(MiB);
        for (const blockSize of SIZES) {
          await using device = await attach(path, { blockSize });
          check(device.loop, path, blockSize);
          await device.detach();
        }
      }),
    );

    it(
      "Loop.configure() with each block size",
      withScratch((scratch) => {
        using own = new OwnDevice();
        const path = scratch.image(MiB);
        for (const blockSize of SIZES) {
          using file = openFile(path);
          using loop = new Loop(own.minor);
          loop.configure(file.fd, { blockSize, autoclear: true });
          check(loop, path, blockSize);
          loop.close();
          assert(isSoon(() => own.isFree)); // udev may have it open
        }
      }),
    );

    it(
      "Loop.setBlockSize() from each block size to each",
      withScratch(async (scratch) => {
        const path = scratch.image(MiB);
        for (const first of SIZES) {
          await using device = await attach(path, { blockSize: first });
          for (const second of SIZES) {
            device.loop.setBlockSize(second);
            check(device.loop, path, second);
          }
          await device.detach();
        }
      }),
    );
  },
);
