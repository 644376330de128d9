/**
 * Mounts beside udev, which opens devices when they are attached and when they are closed.
 * An unmount must not fail as busy because of udev, and no byte may be lost.
 */
import { mount } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { onDevices, run, runOk, Scratch } from "../device/support.ts";

/** Number of cycles, even on a slow machine. */
const CYCLES = 200;
const SIZE = 64 << 10;

describe(`mount, write and unmount ${CYCLES} times`, onDevices, () => {
  it("never throws LoopBusyError, and loses no byte", async () => {
    using scratch = new Scratch();
    const image = scratch.image(8 << 20);
    runOk("mkfs.ext4", "-q", "-F", image);
    const target = `${scratch.path}/mnt`;
    Deno.mkdirSync(target);
    let expected: Uint8Array | undefined;
    for (let cycle = 1; cycle <= CYCLES; cycle++) {
      const disk = await mount(image, cycle % 2 === 0 ? { target } : {});
      const file = `${disk.path}/file`;
      if (expected !== undefined) {
        assertEquals(Deno.readFileSync(file), expected);
      }
      expected = new Uint8Array(SIZE);
      new Uint32Array(expected.buffer).fill(cycle * 0x10001);
      Deno.writeFileSync(file, expected);
      await disk.unmount();
      assertEquals(scratch.devices(), []);
    }
    const { code, stdout } = run("e2fsck", "-f", "-n", image);
    assertEquals(code, 0, stdout);
    scratch.check();
  });
});
