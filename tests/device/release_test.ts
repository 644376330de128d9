/**
 * Tests releasing devices beside other processes that exchange the file, write a lot,
 * or close too early.
 */
import {
  attach,
  detach,
  Loop,
  LoopBusyError,
  LoopError,
  openFile,
  openMemory,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { pwrite, writeBackAsync, writeBackError } from "../../lib/sys/libc.ts";
import {
  isSoon,
  mounted,
  onDevices,
  OwnDevice,
  partitionNames,
  runOk,
  type Scratch,
  settle,
  type Undo,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

/**
 * Mounts a file system on the directory `small` of a test, too small for the data
 * written to it.
 */
function smallDisk(scratch: Scratch, size: string): Undo {
  const path = `${scratch.path}/small`;
  Deno.mkdirSync(path);
  return mounted("-t", "tmpfs", "-o", `size=${size}`, "none", path);
}

describe("Attachment.detach() and detach()", onDevices, () => {
  it(
    "do not consider a device with an exchanged file free",
    withScratch(async (scratch) => {
      const path = scratch.image();
      using other = openMemory(MiB);
      for (const byReference of [false, true]) {
        using own = new OwnDevice();
        const device = await attach(path, {
          readOnly: true,
          minor: own.minor,
        });
        const holder = new Loop(own.minor, { readOnly: true });
        if (byReference) await device.persist();
        const detaching = byReference
          ? detach(own.path, { timeout: 200 })
          : device.detach({ timeout: 200 });
        const error = assertRejects(() => detaching, LoopBusyError);
        holder.changeFd(other.fd);
        await error;
        assert(own.isBound);
        holder.close();
        await device.detach().catch(() => {}); // to detach by reference, it is another file
        assert(own.isFree);
      }
    }),
  );

  it(
    "consider a device that was reused for another file free",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      const device = await attach(path, { minor: own.minor });
      const holder = new Loop(own.minor, { readOnly: true });
      const detaching = device.detach({ timeout: 10_000 });
      await new Promise((resolve) => setTimeout(resolve, 50));
      holder.close();
      runOk("losetup", own.path, scratch.image(MiB, "theirs"));
      await detaching;
      assert(own.isBound);
    }),
  );
});

/** Aborts after some turns of the microtask queue, none of which finds all holders. */
async function abortAfter(
  turns: number,
  work: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const reason = new Error("aborted");
  const controller = new AbortController();
  const working = work(controller.signal);
  // A rejection before the abort is handled below.
  working.catch(() => {});
  for (let turn = 0; turn < turns; turn++) await undefined;
  controller.abort(reason);
  const error = await working.then(() => undefined, (error) => error);
  assertEquals(error, reason, `${turns}`);
}

describe("an abort", onDevices, () => {
  it(
    "during the search of ifUnused leaves the device attached",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const device = await attach(scratch.image(), { minor: own.minor });
      for (let turns = 0; turns < 32; turns += 4) {
        await abortAfter(
          turns,
          (signal) => device.detach({ ifUnused: true, signal }),
        );
        assert(own.isBound);
      }
      await device.persist();
      for (let turns = 0; turns < 32; turns += 4) {
        await abortAfter(
          turns,
          (signal) => detach(own.path, { ifUnused: true, signal }),
        );
        assert(own.isBound);
      }
      await detach(own.path);
    }),
  );

  it(
    "rejects with its reason while the error of a busy device is prepared",
    withScratch(async (scratch) => {
      const device = await attach(scratch.image());
      const holder = new Loop(device.minor, { readOnly: true });
      for (let turns = 0; turns < 32; turns += 4) {
        await abortAfter(
          turns,
          (signal) => device.detach({ timeout: 0, signal }),
        );
      }
      holder.close();
      await device.detach();
    }),
  );
});

describe("Attachment", onDevices, () => {
  it(
    "reports a failed write-back of a large amount by detach() and persist()",
    withScratch(async (scratch) => {
      using mount = smallDisk(scratch, "16M");
      for (const persists of [false, true]) {
        const path = scratch.image(64 * MiB, "small/disk.img");
        const device = await attach(path);
        runOk(
          "dd",
          "if=/dev/urandom",
          `of=${device.path}`,
          "bs=1M",
          "count=48",
          "status=none",
        );
        const error = await assertRejects(
          () => persists ? device.persist() : device.detach(),
          LoopError,
        );
        assert(["EIO", "ENOSPC"].includes(error.code), error.message);
        if (persists) await device.detach();
        assertEquals(scratch.devices(), []);
        Deno.removeSync(path);
      }
      mount[Symbol.dispose]();
    }),
  );

  it(
    "reports by disposal a failure that an aborted detach() could not report",
    withScratch(async (scratch) => {
      using mount = smallDisk(scratch, "2M");
      const path = scratch.image(8 * MiB, "small/disk.img");
      const device = await attach(path);
      await device.write(new Uint8Array(6 * MiB).fill(1), 0);
      const other = new Loop(device.minor, { readOnly: true });
      const reason = await assertRejects(
        () => device.detach({ signal: AbortSignal.timeout(50) }),
        DOMException,
      );
      assertEquals(reason.name, "TimeoutError");
      other.close();
      const error = await assertRejects(
        async () => await device[Symbol.asyncDispose](),
        LoopError,
      );
      assert(["EIO", "ENOSPC"].includes(error.code), error.message);
      await device[Symbol.asyncDispose](); // throws once
      assert(isSoon(() => scratch.devices().length === 0));
      Deno.removeSync(path);
      mount[Symbol.dispose]();
    }),
  );

  it(
    "throws EBADF if its loop is closed while detach() writes back",
    withScratch(async (scratch) => {
      for (const autoclear of [true, false]) {
        const device = await attach(scratch.image(64 * MiB), { autoclear });
        const output = `of=${device.path}`;
        const options = ["bs=1M", "count=48", "status=none"];
        runOk("dd", "if=/dev/zero", output, ...options);
        const detaching = device.detach();
        device.loop.close();
        const error = await assertRejects(() => detaching, LoopError);
        assertEquals(error.code, "EBADF");
        await device.detach();
        assert(isSoon(() => scratch.devices().length === 0));
      }
    }),
  );

  it(
    "waits up to detachTimeout on disposal",
    withScratch(async (scratch) => {
      const device = await attach(scratch.image(), { detachTimeout: 1 });
      using _holder = new Loop(device.minor, { readOnly: true });
      await assertRejects(
        async () => await device[Symbol.asyncDispose](),
        LoopBusyError,
      );
      _holder.close();
      await device.detach();
    }),
  );

  it(
    "clamps a size above 2^53-1, where Loop.getSize() throws",
    withScratch(async (scratch) => {
      const directory = `${scratch.path}/tmpfs`;
      Deno.mkdirSync(directory);
      using mount = mounted("-t", "tmpfs", "none", directory);
      const path = `${directory}/huge.img`;
      runOk("truncate", "--size", "9223372036854771712", path);
      await using device = await attach(path);
      assertEquals(device.size, Number.MAX_SAFE_INTEGER);
      assertThrows(() => device.loop.getSize(), RangeError, "size");
      await device.detach();
      mount[Symbol.dispose]();
    }),
  );
});

describe("writeBackError()", onDevices, () => {
  it(
    "returns an error of another descriptor once, without writing",
    withScratch(async (scratch) => {
      using mount = smallDisk(scratch, "1M");
      const device = await attach(scratch.image(4 * MiB, "small/disk.img"));
      assertEquals(writeBackError(device.loop.fd), 0);
      using writer = new Loop(device.minor);
      assertEquals(
        pwrite(writer.fd, new Uint8Array(2 * MiB).fill(1), 0),
        2 * MiB,
      );
      await writeBackAsync(writer.fd);
      assert(writeBackError(device.loop.fd) < 0);
      assertEquals(writeBackError(device.loop.fd), 0);
      writer.close();
      await device.detach();
      mount[Symbol.dispose]();
    }),
  );
});

describe("attach()", onDevices, () => {
  it(
    "refuses a range smaller than one block before a device is bound",
    withScratch(async (scratch) => {
      const empty = scratch.image(0, "empty");
      const path = scratch.image(MiB);
      const cases: [string, Parameters<typeof attach>[1], RegExp][] = [
        [
          empty,
          {},
          /smaller than one block of 512 bytes: the file has 0 bytes/,
        ],
        [path, { offset: MiB }, /offset 1048576 is past the end/],
        [path, { offset: 2n ** 62n }, /is past the end: the file has 1048576/],
        [path, { offset: MiB - 511 }, /smaller than one block of 512/],
        [path, { sizelimit: 511 }, /smaller than one block of 512/],
        [
          path,
          { sizelimit: 4095, blockSize: 4096 },
          /smaller than one block of 4096/,
        ],
      ];
      for (const [file, options, message] of cases) {
        const error = await assertRejects(
          () => attach(file, options),
          LoopError,
        );
        assertEquals(error.code, "EINVAL");
        assertMatch(error.message, message);
      }
    }),
  );
});

/** Retries while udev has a new partition open for a moment. */
function onceFree(change: () => void): void {
  let failure: unknown;
  const isBusy = () => {
    try {
      failure = undefined;
      change();
    } catch (error) {
      failure = error;
    }
    return failure instanceof LoopError && failure.code === "EBUSY";
  };
  isSoon(() => !isBusy());
  if (failure !== undefined) throw failure;
}

describe("Loop.changeFd() and Loop.setStatus()", onDevices, () => {
  it(
    "remove partitions that would show other bytes, with and without partscan",
    withScratch(async (scratch) => {
      const path = scratch.image();
      using second = openFile(scratch.image(MiB, "second"));
      for (const partscan of [false, true]) {
        using own = new OwnDevice();
        await using device = await attach(path, {
          readOnly: true,
          minor: own.minor,
          partscan,
        });
        runOk("addpart", own.path, "1", "8", "8");
        runOk("addpart", own.path, "7", "64", "8");
        onceFree(() => device.loop.changeFd(second.fd));
        assertEquals(partitionNames(own.name), []);
        runOk("addpart", own.path, "1", "8", "8");
        onceFree(() => device.loop.setStatus({ offset: 4096 }));
        assertEquals(partitionNames(own.name), []);
        await device.detach();
      }
    }),
  );

  it(
    "change nothing while a partition is in use, or if the change fails",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      using second = openFile(scratch.image(MiB, "second"));
      using small = openFile(scratch.image(MiB / 2, "small"));
      await using device = await attach(path, {
        readOnly: true,
        minor: own.minor,
        partscan: true,
      });
      runOk("addpart", own.path, "1", "8", "8");
      runOk("addpart", own.path, "2", "64", "8");
      settle();
      const names = [`${own.name}p1`, `${own.name}p2`];
      const { diskSequence } = device;
      {
        using _held = Deno.openSync(`${own.path}p2`);
        const changes = [
          () => device.loop.changeFd(second.fd),
          () => device.loop.setStatus({ offset: 4096 }),
        ];
        for (const change of changes) {
          const error = assertThrows(change, LoopError);
          assertEquals(error.code, "EBUSY");
          assertMatch(error.message, new RegExp(`${own.name}p2`));
          assertEquals(partitionNames(own.name).sort(), names);
          settle(); // udev opens those that were put back
        }
      }
      const error = assertThrows(
        () => onceFree(() => device.loop.changeFd(small.fd)),
        LoopError,
      );
      assertEquals(error.code, "EINVAL");
      assertEquals(partitionNames(own.name).sort(), names);
      assertEquals(device.diskSequence, diskSequence);
      await device.detach();
    }),
  );
});
