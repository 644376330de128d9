import {
  attach,
  Attachment,
  detach,
  list,
  Loop,
  LoopBusyError,
  LoopControl,
  LoopError,
  openDirectory,
  openFile,
  openMemory,
  StaleDeviceError,
  UnexpectedDevice,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertGreater,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { FileDescriptor } from "../../lib/kernel/file_descriptor.ts";
import { addPartition } from "../../lib/sys/blk_uapi.ts";
import {
  AT_FDCWD,
  cString,
  O_APPEND,
  O_RDWR,
  openAt,
} from "../../lib/sys/libc.ts";
import {
  attribute,
  diskSequenceOf,
  holdExclusively,
  isSoon,
  lines,
  losetupDetach,
  noDiskSequence,
  onDevices,
  OwnDevice,
  partitionNames,
  run,
  runOk,
  Scratch,
  times,
  traced,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

async function rejected(call: () => Promise<unknown>): Promise<LoopError> {
  return await assertRejects(call, LoopError);
}

/** Holds a device open like another program. */
function holdOpen(path: string): Loop {
  return Loop.open(path, { readOnly: true });
}

describe("attach()", onDevices, () => {
  it(
    "attaches a file with autoclear, and disposal detaches it",
    withScratch(async (scratch) => {
      const path = scratch.image(3 * MiB);
      let device;
      {
        await using attachment = await attach(path);
        assert(attachment instanceof Attachment);
        device = attachment.path;
        assertEquals(scratch.devices(), [device]);
        const name = device.replace("/dev/", "");
        assertEquals(attachment.minor, Number(name.replace("loop", "")));
        assertEquals(attachment.size, 3 * MiB);
        assertEquals(attachment.blockSize, 512);
        assertEquals(attachment.diskSequence, diskSequenceOf(name));
        assertEquals(attribute(name, "loop/autoclear"), "1");
        assertEquals(attribute(name, "ro"), "0");
      }
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "attaches URLs, descriptors and memory",
    withScratch(async (scratch) => {
      runOk("bash", "-c", `truncate -s 4096 '${scratch.path}/'$'a b\\xff'`);
      {
        await using a = await attach(
          new URL(`file://${scratch.path}/a%20b%ff`),
        );
        assertEquals(a.size, 4096);
      }
      using file = openFile(scratch.image());
      {
        await using a = await attach(file);
        assertEquals(a.size, MiB);
      }
      assert(file.fd >= 0, "the descriptor stays the caller's");
      const memory = openMemory(8192);
      await using b = await attach(memory);
      memory.close();
      assertEquals(b.size, 8192);
      await b.detach();
    }),
  );

  it(
    "attaches a loop device, and detaches both",
    withScratch(async (scratch) => {
      await using lower = await attach(scratch.image());
      await using upper = await attach(lower.path, { offset: 512 });
      assertEquals(upper.size, MiB - 512);
      Deno.writeFileSync(upper.path, new Uint8Array(512).fill(5));
      await upper.detach();
      await lower.detach();
      assertEquals(Deno.readFileSync(scratch.path + "/disk.img")[512], 5);
    }),
  );

  it(
    "sets offset, sizelimit, block size, read-only, partscan and reference",
    withScratch(async (scratch) => {
      const path = scratch.image(MiB + 100);
      const sizes: [Parameters<typeof attach>[1], number][] = [
        [{}, MiB],
        [{ offset: 4096 }, MiB - 4096],
        [{ sizelimit: 1000 }, 512],
        [{ sizelimit: 2n ** 62n }, MiB],
        [{ offset: 1024n, sizelimit: 2048 }, 2048],
        [{ offset: 4096, blockSize: 4096 }, MiB - 4096],
      ];
      for (const [options, size] of sizes) {
        await using attachment = await attach(path, options);
        assertEquals(attachment.size, size);
        assertEquals(attachment.blockSize, options?.blockSize ?? 512);
      }
      await using readOnly = await attach(path, {
        readOnly: true,
        partscan: true,
        reference: "r",
      });
      assert(readOnly.loop.isReadOnly());
      assert(readOnly.loop.getStatus().partscan);
      assertEquals(readOnly.loop.getStatus().reference, "r");
      assertEquals(run("dd", "if=/dev/zero", `of=${readOnly.path}`).code, 1);
      await readOnly.detach();
    }),
  );

  it(
    "uses direct I/O, or throws if it is not possible",
    withScratch(async (scratch) => {
      const path = scratch.image(8 * MiB);
      {
        await using a = await attach(path, { directIo: true, blockSize: 4096 });
        assert(a.loop.getStatus().directIo);
      }
      for (const offset of [100, 513]) {
        const error = await rejected(() =>
          attach(path, { directIo: true, offset })
        );
        assertEquals(error.code, "EINVAL");
        assertMatch(error.message, /requested directIo true, got false/);
        assertEquals(scratch.devices(), []);
      }
      using direct = openFile(path, { directIo: true });
      const error = await rejected(() => attach(direct, { directIo: false }));
      assertMatch(error.message, /requested directIo false, got true/);
    }),
  );

  it(
    "leaves nothing attached after a mismatch, even without autoclear",
    withScratch(async (scratch) => {
      const path = scratch.image(8 * MiB);
      const error = await rejected(() =>
        attach(path, { directIo: true, offset: 100, autoclear: false })
      );
      assertEquals(error.code, "EINVAL");
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "clears the read-only bit of an earlier user",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      {
        await using a = await attach(path, { minor: own.minor });
        runOk("blockdev", "--setro", a.path);
      }
      assertEquals(attribute(own.name, "ro"), "1");
      await using b = await attach(path, { minor: own.minor });
      assert(!b.loop.isReadOnly());
      Deno.writeFileSync(b.path, new Uint8Array(512).fill(1));
      await b.detach();
    }),
  );

  it(
    "attaches to the device of a number, and adds it if it is missing",
    withScratch(async (scratch) => {
      const path = scratch.image();
      let minor;
      {
        using own = new OwnDevice();
        minor = own.minor;
      }
      {
        await using a = await attach(path, { minor });
        assertEquals(a.minor, minor);
        const error = await rejected(() =>
          attach(path, { minor: minor!, overlap: "allow" })
        );
        assertEquals(error.code, "EBUSY");
        assertEquals(error.operation, "LOOP_CONFIGURE");
        assertEquals(
          error.message,
          `Cannot attach "${path}" to "/dev/loop${minor}": device or resource busy (EBUSY): it is already attached or held exclusively`,
        );
        assertEquals(scratch.devices(), [a.path]);
      }
      runOk("losetup", `/dev/loop${minor}`, path); // the device exists
      losetupDetach(`/dev/loop${minor}`);
      using control = new LoopControl();
      control.remove(minor);
    }),
  );

  it(
    "refuses a device as its own backing file, and a cycle of two devices",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const self = await rejected(() => attach(own.path, { minor: own.minor }));
      assertEquals(self.code, "EBADF");
      assertMatch(self.message, /leads back/);
      await using lower = await attach(scratch.image(), { readOnly: true });
      await using upper = await attach(lower.path, { readOnly: true });
      assertThrows(() => lower.loop.changeFd(upper.loop.fd), LoopError);
      await upper.detach();
      await lower.detach();
    }),
  );

  it(
    "refuses files that cannot be attached, with the reason",
    withScratch(async (scratch) => {
      const { path } = scratch;
      runOk("mkfifo", `${path}/fifo`);
      const cases: [string, string][] = [
        [path, "EISDIR"],
        ["/dev/null", "EINVAL"],
        [`${path}/fifo`, "EINVAL"],
        [`${path}/none`, "ENOENT"],
        [`${path}/${"n".repeat(300)}`, "ENAMETOOLONG"],
      ];
      for (const [file, code] of cases) {
        const error = await rejected(() => attach(file));
        assertEquals(error.code, code);
        assertEquals(error.path, file);
      }
      using directory = openDirectory(path);
      assertEquals((await rejected(() => attach(directory))).code, "EISDIR");
      assertEquals((await rejected(() => attach({ fd: 9999 }))).code, "EBADF");
      using reading = openFile(scratch.image(), { readOnly: true });
      const error = await rejected(() => attach(reading));
      assertMatch(error.message, /readOnly: true/);
      await using a = await attach(reading, { readOnly: true });
      assert(a.loop.isReadOnly());
      await a.detach();
    }),
  );

  it(
    "refuses files that can be opened for writing but not written",
    withScratch(async (scratch) => {
      const program = `${scratch.path}/program`;
      Deno.copyFileSync("/bin/sleep", program);
      const process = new Deno.Command(program, { args: ["60"] }).spawn();
      const running = await rejected(() => attach(program));
      process.kill();
      await process.status;
      assertEquals(running.code, "ETXTBSY");
      assertMatch(running.message, /use readOnly: true/);

      const sealer = new Deno.Command("python3", {
        args: [
          "-c",
          `import fcntl, os, sys
fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.truncate(fd, 4096)
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
print(fd, flush=True)
sys.stdin.read()`,
        ],
        stdin: "piped",
        stdout: "piped",
      }).spawn();
      const output = sealer.stdout.getReader();
      const fd = new TextDecoder().decode((await output.read()).value).trim();
      const path = `/proc/${sealer.pid}/fd/${fd}`;
      const sealed = await rejected(() => attach(path));
      assertEquals(sealed.code, "EPERM");
      assertMatch(sealed.message, /sealed .* use readOnly: true/);
      await using a = await attach(path, { readOnly: true });
      assertEquals(a.size, 4096);
      await a.detach();
      await sealer.stdin.close();
      await sealer.status;
      await output.cancel();
    }),
  );

  it(
    "throws EBADF for a closed descriptor",
    withScratch(async (scratch) => {
      const file = openFile(scratch.image());
      file.close();
      const error = await rejected(() => attach(file));
      assertEquals(error.code, "EBADF");
      assertMatch(error.message, /it is closed/);
    }),
  );

  it(
    "refuses a descriptor that appends, unless it is opened again for the lock",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const flags = O_RDWR | O_APPEND;
      using file = new FileDescriptor(openAt(AT_FDCWD, cString(path), flags));
      const error = await assertRejects(
        () => attach(file, { overlap: "allow" }),
        LoopError,
        "O_APPEND",
      );
      assertEquals(error.code, "EINVAL");
      for (
        const options of [{}, { overlap: "allow", readOnly: true }] as const
      ) {
        await using device = await attach(file, options);
        await device.detach();
      }
      assertEquals(Deno.statSync(path).size, MiB);
    }),
  );

  it(
    "suggests readOnly for a file that can only be read",
    withScratch(async (scratch) => {
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      runOk("mount", "-t", "tmpfs", "tmpfs", mnt);
      try {
        Deno.writeFileSync(`${mnt}/disk.img`, new Uint8Array(4096));
        runOk("mount", "-o", "remount,ro", mnt);
        const error = await rejected(() => attach(`${mnt}/disk.img`));
        assertEquals(error.code, "EROFS");
        assertMatch(error.message, /use readOnly: true/);
        await using a = await attach(`${mnt}/disk.img`, { readOnly: true });
        assert(a.loop.isReadOnly());
      } finally {
        runOk("umount", mnt);
      }
    }),
  );

  it(
    "skips a device that another process holds exclusively",
    withScratch(async (scratch) => {
      const path = scratch.image();
      let held;
      {
        await using first = await attach(path);
        held = first.path;
      }
      using _holder = holdExclusively(held);
      await using a = await attach(path);
      assertNotEquals(a.path, held);
    }),
  );

  it(
    "rejects with the reason of the signal",
    withScratch(async (scratch) => {
      const controller = new AbortController();
      controller.abort("no");
      const path = scratch.image();
      let reason;
      try {
        await attach(path, { signal: controller.signal });
      } catch (error) {
        reason = error;
      }
      assertEquals(reason, "no");
    }),
  );
});

describe("Attachment", onDevices, () => {
  it(
    "keeps minor, path and diskSequence after it was detached",
    withScratch(async (scratch) => {
      const a = await attach(scratch.image());
      const { path, minor, diskSequence } = a;
      await a.detach();
      await a.detach();
      await a[Symbol.asyncDispose]();
      assertEquals([a.path, a.minor, a.diskSequence], [
        path,
        minor,
        diskSequence,
      ]);
      for (const call of [() => a.size, () => a.blockSize]) {
        assertEquals(assertThrows(call, LoopError).code, "EBADF");
      }
      const error = await assertRejects(() => a.persist(), LoopError);
      assertEquals(error.code, "EBADF");
      assertEquals(a.loop.fd, -1);
    }),
  );

  it(
    "detaches if an exception leaves the block",
    withScratch(async (scratch) => {
      const path = scratch.image();
      await assertRejects(
        async () => {
          await using a = await attach(path);
          Deno.writeFileSync(a.path, new Uint8Array(4096).fill(8));
          throw new Error("on the way");
        },
        Error,
        "on the way",
      );
      assertEquals(scratch.devices(), []);
      assertEquals(Deno.readFileSync(path)[4095], 8);
    }),
  );

  it(
    "detaches without autoclear, even if that was turned off later",
    withScratch(async (scratch) => {
      const path = scratch.image();
      for (const autoclear of [true, false]) {
        await using a = await attach(path, { autoclear });
        assertEquals(a.loop.getStatus().autoclear, autoclear);
        if (autoclear) a.loop.setStatus({ autoclear: false });
        Deno.writeFileSync(a.path, new Uint8Array(512).fill(6));
        await a.detach();
        assertEquals(scratch.devices(), []);
        assertEquals(Deno.readFileSync(path)[0], 6);
      }
    }),
  );

  it(
    "detaches by its disk sequence number after persist()",
    withScratch(async (scratch) => {
      let device;
      {
        await using a = await attach(scratch.image());
        device = await a.persist();
        assertEquals(await a.persist(), device);
        assertEquals(device, a.path);
        assertEquals(a.loop.fd, -1);
        assertEquals(assertThrows(() => a.size, LoopError).code, "EBADF");
      }
      assertEquals(scratch.devices(), [device]);
      assertEquals(
        attribute(device.replace("/dev/", ""), "loop/autoclear"),
        "0",
      );
      await detach(device);

      const b = await attach(scratch.image());
      await b.persist();
      await b.detach();
      await b.detach();
      assertEquals(scratch.devices(), []);

      using own = new OwnDevice();
      const c = await attach(scratch.image(), { minor: own.minor });
      losetupDetach(await c.persist());
      await c.detach(); // already free
    }),
  );

  it(
    "persists while another process holds the device exclusively for a moment",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      const holder = holdExclusively(a.path);
      setTimeout(() => holder.close(), 100);
      await detach(await a.persist());
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "does not detach a device that was reused for another file",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const a = await attach(scratch.image(), { minor: own.minor });
      losetupDetach(await a.persist());
      const other = scratch.image(MiB, "other.img");
      runOk("losetup", own.path, other);
      const error = await assertRejects(() => a.detach(), StaleDeviceError);
      assertEquals(error.code, "ESTALE");
      assertEquals(scratch.devices(), [own.path]);
      assertEquals(attribute(own.name, "loop/autoclear"), "0");
      losetupDetach(own.path);

      // Repeated with the same file and a handle whose descriptor was closed.
      const b = await attach(other, { minor: own.minor });
      b.loop.close();
      runOk("losetup", own.path, other);
      assertEquals(Object.keys(b.toJSON()).length, 4);
      await assertRejects(() => b.detach(), StaleDeviceError);
      assertEquals(scratch.devices(), [own.path]);
      losetupDetach(own.path);
      await b.detach();
    }),
  );

  it(
    ...unless(noDiskSequence, "tells a recycled device by a number alone"),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const a = await attach(scratch.image(), { minor: own.minor });
      const { minor, diskSequence } = a;
      await a.detach();
      runOk("losetup", own.path, scratch.image());
      await assertRejects(
        () => detach({ minor, diskSequence }),
        StaleDeviceError,
      );
      losetupDetach(own.path);
    }),
  );

  it(
    "updates the disk sequence number after changeFd()",
    withScratch(async (scratch) => {
      const a = await attach(scratch.image(), { readOnly: true });
      const before = a.diskSequence;
      using second = openFile(scratch.image(MiB, "second.img"));
      a.loop.changeFd(second.fd);
      if (noDiskSequence === undefined) assertGreater(a.diskSequence, before);
      else assertEquals([a.diskSequence, before], [0, 0]);
      await a.persist();
      await a.detach();
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "waits for other processes, and is pending after a timeout",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const a = await attach(path);
      const other = holdOpen(a.path);
      const error = await assertRejects(
        () => a.detach({ timeout: 20 }),
        LoopBusyError,
        a.path,
      );
      assertEquals(error.code, "EBUSY");
      assertEquals(a.loop.fd, -1);
      await a[Symbol.asyncDispose](); // neither waits nor throws
      const waiting = a.detach();
      assertEquals(scratch.devices(), [a.path]);
      setTimeout(() => other.close(), 30);
      await waiting;
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "does not wait if lazy, nor after its signal is aborted",
    withScratch(async (scratch) => {
      const a = await attach(scratch.image());
      const other = holdOpen(a.path);
      await a.detach({ lazy: true });
      assertEquals(scratch.devices(), [a.path]);
      const reason = new Error("enough");
      const error = await assertRejects(
        () => a.detach({ signal: AbortSignal.timeout(20) }),
        DOMException,
      );
      assertEquals(error.name, "TimeoutError");
      const controller = new AbortController();
      const waiting = a.detach({ signal: controller.signal });
      controller.abort(reason);
      assertEquals(await assertRejects(() => waiting), reason);
      other.close();
      await a.detach();
      assertEquals(scratch.devices(), []);

      const b = await attach(scratch.image());
      await b.detach({ lazy: true }); // no other process has it open
      assertThrows(() => b.size, LoopError);
      assert(isSoon(() => scratch.devices().length === 0));
    }),
  );

  it(
    "does not wait a second time after its loop was closed",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const a = await attach(scratch.image(), { minor: own.minor });
      const other = holdOpen(a.path);
      a.loop.close();
      await assertRejects(() => a.detach({ timeout: 10 }), LoopBusyError);
      await a[Symbol.asyncDispose]();
      assertEquals(scratch.devices(), [a.path]);
      other.close();
      await a.detach();
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "has no partitions left if another process closed it last",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      for (let round = 0; round < 20; round++) {
        const a = await attach(path, { minor: own.minor, partscan: true });
        for (const number of [1, 2, 3, 4, 5, 6]) {
          runOk("addpart", own.path, `${number}`, `${number * 8}`, "8");
        }
        runOk("bash", "-c", `exec 3< ${own.path}; (sleep 0.01) > /dev/null &`);
        await a.detach();
        assertEquals(partitionNames(own.name), []);
      }
    }),
  );

  it(
    "has no partitions left if another process closes it at the same time",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      await using other = new Deno.Command("bash", {
        args: ["-c", "while read; do exec 3< $0; echo; read; exec 3<&-; done"]
          .concat(own.path),
        stdin: "piped",
        stdout: "piped",
      }).spawn();
      const input = other.stdin.getWriter();
      const answers = lines(other.stdout);
      const proceed = () => input.write(new TextEncoder().encode("\n"));
      for (let round = 0; round < times(200); round++) {
        const a = await attach(path, { minor: own.minor, partscan: true });
        for (let number = 1; number <= 8; number++) {
          addPartition(a.loop.fd, { number, start: number << 12, size: 4096 });
        }
        await proceed();
        await answers.next();
        await proceed();
        const end = performance.now() + Math.random() * 0.4;
        while (performance.now() < end);
        await a.detach();
        assertEquals(partitionNames(own.name), [], `round ${round}`);
      }
      await input.close();
      await answers.return(undefined);
    }),
  );

  it(
    "detaches once if detach() is called several times at once",
    withScratch(async (scratch) => {
      const a = await attach(scratch.image(64 * MiB));
      Deno.writeFileSync(a.path, new Uint8Array(32 * MiB).fill(1));
      await Promise.all([a.detach(), a.detach({ lazy: true }), a.detach()]);
      assertEquals(scratch.devices(), []);
      assertEquals(Deno.readFileSync(`${scratch.path}/disk.img`)[0], 1);
    }),
  );

  it("is constructed only by attach()", () => {
    assertThrows(
      () => new Attachment({} as Loop),
      TypeError,
      "use attach()",
    );
  });

  it(
    "reports a failed write-back after the device was released",
    withScratch(async (scratch) => {
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      runOk("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", mnt);
      try {
        for (const autoclear of [true, false]) {
          const path = `${mnt}/sparse.img`;
          Deno.createSync(path).close();
          Deno.truncateSync(path, 8 * MiB);
          const a = await attach(path, { autoclear });
          Deno.writeFileSync(a.path, new Uint8Array(4 * MiB).fill(1));
          const error = await rejected(() => a.detach());
          assertMatch(error.code, /^(EIO|ENOSPC)$/);
          assertEquals(error.operation, "sync_file_range");
          assertEquals(scratch.devices(), []);
          await a.detach();
          Deno.removeSync(path);
        }
      } finally {
        runOk("umount", mnt);
      }
    }),
  );
});

describe("detach()", onDevices, () => {
  it(
    "delegates to the Attachment",
    withScratch(async (scratch) => {
      const a = await attach(scratch.image());
      await detach(a, { timeout: 4000 });
      assertEquals(scratch.devices(), []);
      assertEquals(a.loop.fd, -1);
    }),
  );

  it(
    "detaches by path, name, number, node, and row of list()",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const refs = [
        (device: string) => device,
        (device: string) => device.replace("/dev/", ""),
        (device: string) => Number(device.replace("/dev/loop", "")),
        (device: string) => ({
          minor: Number(device.replace("/dev/loop", "")),
        }),
        (device: string) => list().find((found) => found.path === device)!,
        (device: string) => {
          const node = `${scratch.path}/node`;
          runOk("cp", "-a", device, node);
          return node;
        },
      ];
      for (const ref of refs) {
        const device = runOk("losetup", "--find", "--show", path);
        Deno.writeFileSync(device, new Uint8Array(512).fill(refs.length));
        await detach(ref(device));
        assertEquals(scratch.devices(), []);
        assertEquals(Deno.readFileSync(path)[511], refs.length);
        Deno.writeFileSync(path, new Uint8Array(MiB));
      }
    }),
  );

  it(
    "throws for a free device, a missing device, and a partition",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const error = await rejected(() => detach(own.path));
      assertEquals(error.code, "ENXIO");
      assertMatch(error.message, /no file is attached/);
      let gone;
      {
        using other = new OwnDevice();
        gone = other.path;
      }
      assertEquals((await rejected(() => detach(gone!))).code, "ENOENT");
      await using a = await attach(scratch.image(), {
        minor: own.minor,
        partscan: true,
      });
      runOk("addpart", own.path, "1", "8", "8");
      for (const name of [`${own.path}p1`, `${own.name}p1`]) {
        const error = await assertRejects(() => detach(name), UnexpectedDevice);
        assertMatch(error.message, new RegExp(`use ${own.path}`));
      }
      await a.detach();
      assertThrows(() => Deno.statSync(`${own.path}p1`));
    }),
  );

  it(
    "waits for other processes up to its timeout, and the kernel detaches at the last close",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const device = runOk("losetup", "--find", "--show", path);
      const other = holdOpen(device);
      await detach(device, { lazy: true });
      await assertRejects(() => detach(device, { timeout: 10 }), LoopBusyError);
      other.close();
      assert(isSoon(() => scratch.devices().length === 0));
    }),
  );

  it(
    "does not touch a device of another process when attaching fails",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const victim = scratch.image(MiB, "victim.img");
      runOk("losetup", own.path, victim);
      const before = list().find(({ minor }) => minor === own.minor);
      await rejected(() => attach(scratch.image(), { minor: own.minor }));
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      assertThrows(() => loop.configure(file.fd), LoopError);
      assertThrows(() => loop.setFd(file.fd), LoopError);
      loop.close();
      assertEquals(list().find(({ minor }) => minor === own.minor), before);
      await detach(before!);
    }),
  );

  it("does not open a device of another process by its number", () => {
    using scratch = new Scratch();
    using own = new OwnDevice();
    runOk("losetup", own.path, scratch.image(MiB, "victim.img"));
    Deno.writeTextFileSync(
      `${scratch.path}/bound.ts`,
      `import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
       const file = "${scratch.image()}";
       await attach(file, { minor: ${own.minor} }).catch((error) => console.log(error.code));`,
    );
    const { stdout, trace } = traced(
      `${scratch.path}/bound.ts`,
      "openat,open",
    );
    losetupDetach(own.path);
    assertEquals(stdout.trim(), "EBUSY");
    assertMatch(trace, /bound\.ts/);
    assertEquals(trace.match(new RegExp(`.*"${own.path}".*`, "g")), null);
  });
});

describe("attach() and detach()", onDevices, () => {
  it("take one LOOP_CONFIGURE, and open everything with O_CLOEXEC", () => {
    using scratch = new Scratch();
    using own = new OwnDevice(); // its number is not found when looking for a free device
    Deno.writeTextFileSync(
      `${scratch.path}/once.ts`,
      `import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
       await using device = await attach("${scratch.image()}", { minor: ${own.minor} });`,
    );
    const { trace } = traced(
      `${scratch.path}/once.ts`,
      "openat,open,ioctl",
    );
    assertEquals(trace.match(/LOOP_CONFIGURE/g)?.length, 1);
    assertEquals(trace.match(/LOOP_SET_STATUS64|LOOP_CLR_FD/g), null);
    const ours = / open(at)?\(AT_FDCWD, "(.*\.img|\/dev\/loop.*|\/sys\/.*)"/;
    const opens = trace.split("\n").filter((line) => ours.test(line));
    assert(opens.length >= 3, trace);
    assertEquals(opens.filter((line) => !line.includes("O_CLOEXEC")), []);
    scratch.check();
  });
});

describe("detach() and find()", onDevices, () => {
  it("open devices for reading only, which udev does not notice", () => {
    using scratch = new Scratch();
    const image = scratch.image();
    const device = runOk("losetup", "--find", "--show", image);
    const log = `${scratch.path}/log`;
    Deno.writeTextFileSync(
      `${scratch.path}/detach.ts`,
      `import { detach, find } from "${new URL(
        "../../mod.ts",
        import.meta.url,
      )}";
       for (const device of find("${image}")) await detach(device);`,
    );
    const { code, stderr } = run(
      "strace",
      ..."-f -qq -y -e trace=openat -o".split(" "),
      log,
      Deno.execPath(),
      ..."run -q --no-check --allow-ffi".split(" "),
      `${scratch.path}/detach.ts`,
    );
    assertEquals(code, 0, stderr);
    const opens = Deno.readTextFileSync(log).split("\n")
      .filter((line) => / = \d+<(.*)>$/.exec(line)?.[1]?.startsWith(device))
      .filter((line) => !line.includes("O_PATH"));
    assert(opens.length >= 2);
    assertEquals(opens.filter((line) => !line.includes("O_RDONLY")), []);
    scratch.check();
  });

  it(
    "allow a lazy detach to be canceled by clearing autoclear",
    withScratch(async (scratch) => {
      const device = runOk("losetup", "--find", "--show", scratch.image());
      {
        using other = holdOpen(device);
        await detach(device, { lazy: true });
        other.setStatus({ autoclear: false });
      }
      assertEquals(scratch.devices(), [device]);
      await detach(device);
    }),
  );
});

describe("LOOP_CONFIGURE", onDevices, () => {
  it("is named by attach() if the kernel lacks it", () => {
    using scratch = new Scratch();
    using own = new OwnDevice();
    const script = `
      import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
      try {
        await attach("${scratch.image()}", { minor: ${own.minor} });
      } catch (error) {
        console.log(error.code, error.message);
      }`;
    Deno.writeTextFileSync(`${scratch.path}/old.ts`, script);
    const { stdout } = run(
      "strace",
      ..."-f -qq -o /dev/null -e trace=ioctl -P".split(" "),
      own.path,
      "-e",
      "inject=ioctl:error=EINVAL:when=1..2",
      Deno.execPath(),
      ..."run -q --no-check --allow-ffi".split(" "),
      `${scratch.path}/old.ts`,
    );
    assertMatch(stdout, /^EINVAL .*this kernel has no LOOP_CONFIGURE/);
    scratch.check();
  });
});
