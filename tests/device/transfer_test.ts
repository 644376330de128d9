import { attach, LoopError, openMemory } from "@loopdev/loopdev";
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { READ, transferAsync, WRITE } from "../../lib/kernel/transfer.ts";
import { onDevices } from "./support.ts";

const MiB = 1 << 20;

/**
 * Makes calls on another thread fail after some time, and records the bytes of those
 * repeated here.
 */
function failing(
  direction: typeof READ | typeof WRITE,
  milliseconds: number,
): typeof direction & { repeated: number[] } {
  const repeated: number[] = [];
  const failing = {
    ...direction,
    repeated,
    async callAsync(): Promise<number> {
      if (milliseconds > 0) {
        await new Promise((resolve) => setTimeout(resolve, milliseconds));
      }
      return -1;
    },
    call(fd: number, bytes: Uint8Array, position: number): number {
      repeated.push(bytes.length);
      return direction.call(fd, bytes, position);
    },
  };
  return failing as typeof direction & { repeated: number[] };
}

describe("transferAsync()", onDevices, () => {
  it("repeats little of a call that failed quickly", async () => {
    using memory = openMemory(MiB);
    await using device = await attach(memory);
    const direction = failing(READ, 0);
    const work = {
      fd: device.loop.fd,
      path: device.path,
      bytes: new Uint8Array(8192),
      position: 0,
    };
    assertEquals(await transferAsync(direction, work), 8192);
    assertEquals(direction.repeated, [4096, 4096]);
  });

  it("repeats nothing of a call that failed slowly, and says that the reason is unknown", async () => {
    using memory = openMemory(MiB);
    await using device = await attach(memory);
    for (const kind of [READ, WRITE]) {
      const direction = failing(kind, 50);
      const work = {
        fd: device.loop.fd,
        path: device.path,
        bytes: new Uint8Array(8192),
        position: 0,
      };
      const error = await assertRejects(
        () => transferAsync(direction, work),
        LoopError,
      );
      assertEquals([error.code, error.operation], ["EIO", kind.operation]);
      assertMatch(error.message, /the kernel's reason is not known/);
      assertEquals(direction.repeated, [0]);
    }
  });

  it("knows errors that do not depend on the medium, however late they come", async () => {
    using memory = openMemory(MiB);
    await using device = await attach(memory, { readOnly: true });
    await using writable = await attach(memory, { overlap: "allow" });
    const cases: [string, typeof device, number][] = [
      ["EBADF", device, 0],
      ["ENOSPC", writable, MiB],
    ];
    for (const [code, { loop: { fd }, path }, position] of cases) {
      const work = { fd, path, bytes: new Uint8Array(512), position };
      const error = await assertRejects(
        () => transferAsync(failing(WRITE, 50), work),
        LoopError,
      );
      assertEquals(error.code, code);
    }
  });
});
