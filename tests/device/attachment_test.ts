/** Tests of an Attachment other than attaching and detaching. */
import {
  attach,
  attachAll,
  detach,
  list,
  Loop,
  LoopBusyError,
  LoopError,
  openMemory,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  cli,
  hasUdev,
  onDevices,
  OwnDevice,
  runOk,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

/** Returns bytes that encode their position. */
function pattern(size: number): Uint8Array {
  return Uint8Array.from({ length: size }, (_, index) => index * 7 + 3);
}

async function errorOf(call: () => Promise<unknown>): Promise<string> {
  return (await assertRejects(call, LoopError)).code;
}

describe(
  "Attachment.read() and write(), Loop.read() and write()",
  onDevices,
  () => {
    it(
      "transfer bytes at any position, and fewer only at the end of the device",
      withScratch(async (scratch) => {
        const path = scratch.image(MiB);
        const bytes = pattern(100_000);
        await using device = await attach(path);
        const ways = [
          device,
          {
            read: (buffer: Uint8Array, position: number) =>
              Promise.resolve(device.loop.read(buffer, position)),
            write: (bytes: Uint8Array, position: number) =>
              Promise.resolve(device.loop.write(bytes, position)),
          },
        ];
        for (const way of ways) {
          const position = 12_345;
          assertEquals(await way.write(bytes, position), bytes.length);
          const read = new Uint8Array(bytes.length);
          assertEquals(await way.read(read, position), bytes.length);
          assertEquals(read, bytes);
          assertEquals(await way.read(read, MiB - 10), 10);
          assertEquals(await way.read(read, MiB), 0);
          assertEquals(await way.read(new Uint8Array(0), 0), 0);
          assertEquals(await way.write(bytes, MiB - 10), 10);
        }
        assertEquals(await errorOf(() => device.write(bytes, MiB)), "ENOSPC");
        await device.detach();
        const content = Deno.readFileSync(path);
        assertEquals(content.subarray(12_345, 112_345), bytes);
        assertEquals(content.subarray(MiB - 10), bytes.subarray(0, 10));
      }),
    );

    it(
      "do not block the event loop, even many at once",
      withScratch(async (scratch) => {
        await using device = await attach(scratch.image(16 * MiB));
        const writes = Array.from(
          { length: 16 },
          (_, index) =>
            device.write(new Uint8Array(MiB).fill(index), index * MiB),
        );
        assertEquals(await Promise.all(writes), Array(16).fill(MiB));
        const byte = new Uint8Array(1);
        for (let index = 0; index < 16; index++) {
          await device.read(byte, index * MiB + 4711);
          assertEquals(byte[0], index);
        }
        await device.detach();
      }),
    );

    it(
      "are completed by detach() and persist(), and then throw EBADF",
      withScratch(async (scratch) => {
        const path = scratch.image(16 * MiB);
        for (const end of ["detach", "persist"] as const) {
          const device = await attach(path);
          const bytes = pattern(8 * MiB);
          const writing = device.write(bytes, MiB);
          const ending = device[end]();
          if (end === "detach") {
            assertEquals(await errorOf(() => device.read(bytes, 0)), "EBADF");
          }
          assertEquals(await writing, bytes.length);
          await ending;
          assertEquals(await errorOf(() => device.read(bytes, 0)), "EBADF");
          assertEquals(await errorOf(() => device.write(bytes, 0)), "EBADF");
          await device.detach();
          assertEquals(scratch.devices(), []);
          assertEquals(Deno.readFileSync(path).subarray(MiB, 9 * MiB), bytes);
        }
      }),
    );

    it(
      "refuse a read-only device and bad arguments",
      withScratch(async (scratch) => {
        await using device = await attach(scratch.image(), { readOnly: true });
        const bytes = new Uint8Array(512);
        assertEquals(await errorOf(() => device.write(bytes, 0)), "EBADF");
        for (const position of [-1, 0.5, NaN, 2 ** 53]) {
          await assertRejects(() => device.read(bytes, position), RangeError);
        }
        await assertRejects(
          // @ts-expect-error it is not a buffer
          () => device.read("text", 0),
          TypeError,
        );
        await device.detach();
      }),
    );
  },
);

describe("attachAll()", onDevices, () => {
  it(
    "attaches in order, and detaches in reverse order",
    withScratch(async (scratch) => {
      const files = ["a", "b", "c"].map((name) => scratch.image(MiB, name));
      {
        await using group = await attachAll(files, { readOnly: true });
        assertEquals(
          group.devices.map(({ path }) =>
            list().find((device) => device.path === path)?.backingFile
          ),
          files,
        );
      }
      assertEquals(scratch.devices(), []);
      await using none = await attachAll([]);
      assertEquals(none.devices, []);
    }),
  );

  it(
    "leaves nothing attached if one file cannot be attached",
    withScratch(async (scratch) => {
      const good = scratch.image();
      const bad = `${scratch.path}/none`;
      assertEquals(await errorOf(() => attachAll([good, bad])), "ENOENT");
      assertEquals(await errorOf(() => attachAll([good, good])), "EBUSY");
      assertEquals(scratch.devices(), []);
      await assertRejects(
        () => attachAll([good, bad], { minor: 7 }),
        TypeError,
        "minor",
      );
    }),
  );

  it(
    "detaches the others if one is busy, and names that one",
    withScratch(async (scratch) => {
      const files = ["a", "b", "c"].map((name) => scratch.image(MiB, name));
      // udev has the other devices open for a moment.
      const group = await attachAll(files, {
        detachTimeout: hasUdev ? 5000 : 1,
      });
      const [, second] = group.devices;
      const other = new Loop(second!.minor, { readOnly: true });
      const error = await assertRejects(
        async () => await group[Symbol.asyncDispose](),
        LoopBusyError,
      );
      assertEquals(error.path, second!.path);
      assertEquals(scratch.devices(), [second!.path]);
      other.close();
      await second!.detach();
    }),
  );
});

describe("detach({ ifUnused: true })", onDevices, () => {
  it(
    "detaches an unused device, and changes nothing if it is in use",
    withScratch(async (scratch) => {
      const path = scratch.image();
      using own = new OwnDevice();
      const device = await attach(path, { minor: own.minor });
      {
        using _other = new Loop(own.minor, { readOnly: true });
        const error = await assertRejects(
          () => device.detach({ ifUnused: true }),
          LoopBusyError,
        );
        assertMatch(error.message, /nothing was changed/);
        assertEquals(error.holders.length, 1);
        assertEquals(device.size, MiB); // still attached
      }
      // Descriptors of the attachment itself do not count.
      assert(device.loop.lock("exclusive"));
      const reading = device.read(new Uint8Array(4096), 0);
      await onceSeen(() => device.detach({ ifUnused: true }));
      assertEquals(await reading, 4096);
      assert(own.isFree);

      runOk("losetup", own.path, path);
      {
        using _other = new Loop(own.minor, { readOnly: true });
        await assertRejects(
          () => detach(own.path, { ifUnused: true }),
          LoopBusyError,
        );
        using loop = new Loop(own.minor, { readOnly: true });
        assertEquals(loop.getStatus().autoclear, false);
      }
      await onceSeen(() => detach(own.path, { ifUnused: true }));
      assert(own.isFree);
    }),
  );
});

/** Tries anew where a slow machine could not be searched in time, which counts as used. */
async function onceSeen(detach: () => Promise<void>): Promise<void> {
  for (let tries = 1;; tries++) {
    try {
      return await detach();
    } catch (error) {
      const isUnseen = error instanceof LoopBusyError &&
        error.holders.length === 0;
      if (!isUnseen || tries === 10) throw error;
    }
  }
}

describe("Attachment as text", onDevices, () => {
  it("is its path, or its fields as JSON, and never throws", async () => {
    using memory = openMemory(MiB);
    const device = await attach(memory, { reference: "named" });
    const { minor, path, diskSequence } = device;
    assertEquals(`${device}`, path);
    const listed = list().find((found) => found.minor === minor);
    assertEquals(JSON.parse(JSON.stringify(device)), listed);
    assertMatch(Deno.inspect(device), /^Attachment \{\n? +minor: \d+,/);
    await device.detach();
    assertEquals(`${device}`, path);
    assertEquals(JSON.parse(JSON.stringify(device)), {
      minor,
      name: `loop${minor}`,
      path,
      diskSequence,
    });
    assertMatch(Deno.inspect(device), /^Attachment/);
  });
});

describe("attach({ signal })", onDevices, () => {
  it(
    "rejects if the signal is aborted right after the call",
    withScratch(async (scratch) => {
      const path = scratch.image();
      for (const overlap of ["lock", "refuse", "allow"] as const) {
        const controller = new AbortController();
        const { signal } = controller;
        const attaching = attach(path, { overlap, signal });
        controller.abort(new Error("enough"));
        await assertRejects(() => attaching, Error, "enough");
      }
    }),
  );
});

describe("attach() and swap", onDevices, () => {
  it(
    "exclude each other for a file that was swapped in",
    withScratch(async (scratch) => {
      const [first, second] = ["a", "b"].map((name) =>
        scratch.image(MiB, name)
      );
      const device = await attach(first!, { readOnly: true });
      assertEquals(cli("swap", device.path, second!).code, 0);
      assertEquals(await errorOf(() => attach(second!)), "EBUSY");
      await using writer = await attach(first!, { overlap: "allow" });
      const refused = cli("swap", device.path, first!);
      assertEquals(refused.code, 0, refused.stderr); // it is not locked
      await writer.detach();
      const locked = await attach(second!);
      const busy = cli("swap", device.path, second!);
      assertEquals(busy.code, 1);
      assertMatch(busy.stderr, new RegExp(`${locked.path} already shows`));
      await locked.detach();
      await device.detach();
    }),
  );
});
