import { attach, Loop, LoopError, openFile } from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { overlap } from "../../lib/attaching/overlap.ts";
import {
  dropsPartitions,
  hasUdev,
  holdExclusively,
  isSoon,
  losetupDetach,
  onDevices,
  OwnDevice,
  partitionNames,
  run,
  runOk,
  Scratch,
  times,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

async function refused(
  file: Parameters<typeof attach>[0],
  options: Parameters<typeof attach>[1] = {},
): Promise<LoopError> {
  const error = await assertRejects(
    () => attach(file, { ...options, overlap: "refuse" }),
    LoopError,
  );
  assertEquals(error.code, "EBUSY");
  return error;
}

/** Attaches with losetup, which does not lock. */
function losetup(...args: string[]): string {
  return runOk("losetup", "--find", "--show", ...args);
}

describe('attach() with overlap: "refuse"', onDevices, () => {
  it(
    "refuses an attached file, by any name and whatever tool attached it",
    withScratch(async (scratch) => {
      const path = scratch.image();
      Deno.linkSync(path, `${scratch.path}/hard`);
      Deno.symlinkSync(path, `${scratch.path}/symbolic`);
      const bound = scratch.image(0, "bound");
      runOk("mount", "--bind", path, bound);
      try {
        const names = [
          path,
          `${scratch.path}/hard`,
          `${scratch.path}/symbolic`,
          bound,
        ];
        const device = losetup(path);
        for (const name of names) {
          const error = await refused(name);
          assertEquals(error.path, device);
          assertMatch(error.message, new RegExp(`${device} already shows`));
          await refused(name, { readOnly: true });
        }
        losetupDetach(device);

        await using a = await attach(path, { overlap: "refuse" });
        for (const name of names) {
          assertEquals((await refused(name)).path, a.path);
          await refused(name, { readOnly: true });
        }
        using file = openFile(path);
        await refused(file);
        assertEquals(scratch.devices(), [a.path]);
        await a.detach();
        await using b = await attach(path, { overlap: "refuse" });
        await b.detach();
      } finally {
        runOk("umount", bound);
      }
    }),
  );

  it(
    "allows ranges without a common byte",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const options = { overlap: "refuse" as const };
      await using a = await attach(path, {
        ...options,
        offset: 4096,
        sizelimit: 4096,
      });
      await using b = await attach(path, {
        ...options,
        offset: 8192,
        sizelimit: 4096,
      });
      await using c = await attach(path, { ...options, sizelimit: 4096 });
      await refused(path);
      await refused(path, { offset: 4608, sizelimit: 512 });
      await refused(path, { sizelimit: 4608 });
      await refused(path, { offset: 8192 });
      await using d = await attach(path, { ...options, offset: 12288 });
      assertEquals(scratch.devices().length, 4);
      await refused(path, { offset: 2n ** 40n });
      for (const attachment of [a, b, c, d]) await attachment.detach();
    }),
  );

  it(
    "does not apply with overlap: allow",
    withScratch(async (scratch) => {
      const path = scratch.image();
      await using a = await attach(path, { overlap: "refuse" });
      await using b = await attach(path, { overlap: "allow" });
      assertEquals(scratch.devices().length, 2);
      await a.detach();
      await b.detach();
    }),
  );

  it(
    "locks as long as the device is attached, whatever tool detaches it",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const a = await attach(path, { overlap: "refuse" });
      const device = await a.persist();
      await refused(path);
      losetupDetach(device);
      await using b = await attach(path, { overlap: "refuse" });
      await b.detach();
    }),
  );

  it(
    "does not leave its lock on the caller's descriptor",
    withScratch(async (scratch) => {
      const path = scratch.image();
      using file = openFile(path);
      {
        await using a = await attach(file, { overlap: "refuse" });
        assert(a.size === MiB);
      }
      await using b = await attach(path, { overlap: "refuse" });
      await refused(file);
      await b.detach();
      await using c = await attach(file, { overlap: "refuse" });
      await c.detach();
    }),
  );

  it(
    "lets one of many processes attach at the same time",
    withScratch(async (scratch: Scratch) => {
      const path = scratch.image();
      for (const readOnly of [false, true]) {
        const script = `
          import { attach, LoopError } from "${new URL(
          "../../mod.ts",
          import.meta.url,
        )}";
          try {
            const a = await attach("${path}", { overlap: "refuse", readOnly: ${readOnly} });
            console.log("got");
            for await (const _ of Deno.stdin.readable); // wait until all have asked
            await a.detach();
          } catch (error) {
            console.log(error.code);
          }`;
        Deno.writeTextFileSync(`${scratch.path}/ask.ts`, script);
        const children = Array.from(
          { length: Math.max(3, times(6)) },
          () =>
            new Deno.Command(Deno.execPath(), {
              args: [
                ..."run -q --no-check --allow-ffi".split(" "),
                `${scratch.path}/ask.ts`,
              ],
              stdin: "piped",
              stdout: "piped",
            }).spawn(),
        );
        const answers: string[] = [];
        const readers = children.map((child) => child.stdout.getReader());
        for (const reader of readers) {
          const { value } = await reader.read();
          answers.push(new TextDecoder().decode(value).trim());
        }
        for (const [index, child] of children.entries()) {
          await child.stdin.close();
          await child.status;
          await readers[index]!.cancel();
        }
        assertEquals(answers.sort(), [
          ...Array(children.length - 1).fill("EBUSY"),
          "got",
        ]);
        scratch.check();
      }
    }),
  );

  it(
    "recognizes a block device by any of its nodes",
    withScratch(async (scratch) => {
      await using lower = await attach(scratch.image());
      const device = losetup(lower.path);
      runOk("cp", "-a", lower.path, `${scratch.path}/node`);
      const error = await refused(`${scratch.path}/node`);
      assertEquals(error.path, device);
      losetupDetach(device);
      await lower.detach();
    }),
  );
});

describe('attach() with overlap: "lock", the default', onDevices, () => {
  async function locked(
    file: Parameters<typeof attach>[0],
    options: Parameters<typeof attach>[1] = {},
  ): Promise<LoopError> {
    const error = await assertRejects(() => attach(file, options), LoopError);
    assertEquals(error.code, "EBUSY");
    return error;
  }

  it(
    "allows one writer or many readers, and names the device in the way",
    withScratch(async (scratch) => {
      const path = scratch.image();
      await using writer = await attach(path);
      for (const readOnly of [false, true]) {
        const error = await locked(path, { readOnly });
        assertEquals(error.path, writer.path);
        assertMatch(error.message, new RegExp(`${writer.path} already shows`));
      }
      await writer.detach();
      await using a = await attach(path, { readOnly: true });
      await using b = await attach(path, { readOnly: true });
      await locked(path);
      await a.detach();
      await locked(path);
      await b.detach();
      await using again = await attach(path);
      await again.detach();
    }),
  );

  it(
    "allows ranges without a common byte",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const sizelimit = 4096;
      await using a = await attach(path, { sizelimit });
      await using b = await attach(path, { offset: 8192, sizelimit });
      await locked(path, { offset: 4096, sizelimit: 4608 });
      await locked(path, { offset: 4096 });
      await using c = await attach(path, { offset: 4096, sizelimit });
      await using d = await attach(path, {
        offset: 12288,
        sizelimit: 2n ** 63n - 1n,
      });
      for (const device of [a, b, c, d]) await device.detach();
    }),
  );

  it(
    "ignores devices of other tools",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const device = losetup(path);
      await using a = await attach(path);
      await a.detach();
      losetupDetach(device);
    }),
  );

  it(
    "locks its own file description, even for two devices over one descriptor",
    withScratch(async (scratch) => {
      const path = scratch.image();
      using file = openFile(path);
      const a = await attach(file);
      assertEquals((await locked(file)).path, a.path);
      const device = await a.persist();
      await locked(file);
      losetupDetach(device);
      await using b = await attach(file);
      await b.detach();
      await using c = await attach(file);
      await c.detach();
    }),
  );

  it(
    "suggests a remedy for a descriptor that cannot be opened again",
    withScratch((scratch) => {
      const path = scratch.image();
      const script = `
        import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
        for (const overlap of ["lock", "allow"]) {
          try {
            await using a = await attach({ fd: 9 }, { overlap });
            console.log(overlap, a.size);
          } catch (error) {
            console.log(overlap, error.code, error.message);
          }
        }`;
      Deno.writeTextFileSync(`${scratch.path}/try.ts`, script);
      const { stdout } = run(
        "bash",
        "-c",
        `exec 9<>'${path}'; exec strace -f -qq -o /dev/null -e trace=openat -P /proc/self/fd/9 -e inject=openat:error=EACCES '${Deno.execPath()}' run -q --no-check --allow-ffi '${scratch.path}/try.ts'`,
      );
      const [lock = "", allow] = stdout.split("\n");
      assertMatch(lock, /^lock EACCES .*overlap: "allow"/);
      assertEquals(allow, `allow ${MiB}`);
    }),
  );

  it(
    "waits for a device whose process was killed a moment ago",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const script = `
        import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
        const a = await attach("${path}");
        console.log(a.path);
        await new Promise((resolve) => setTimeout(resolve, 60_000));`;
      Deno.writeTextFileSync(`${scratch.path}/hold.ts`, script);
      for (let round = 0; round < times(10); round++) {
        const owner = new Deno.Command(Deno.execPath(), {
          args: [
            ..."run -q --no-check --allow-ffi".split(" "),
            `${scratch.path}/hold.ts`,
          ],
          stdout: "piped",
        }).spawn();
        const output = owner.stdout.getReader();
        await output.read();
        await locked(path); // fails at once, because its owner is alive
        owner.kill("SIGKILL");
        await output.cancel();
        await owner.status;
        await using a = await attach(path);
        await a.detach();
      }
    }),
  );

  it("attaches without a lock if the file system has none", () => {
    using scratch = new Scratch();
    const path = scratch.image();
    for (const errno of ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL"]) {
      const script = `
        import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
        await using a = await attach("${path}");
        console.log(a.size);`;
      Deno.writeTextFileSync(`${scratch.path}/try.ts`, script);
      const { stdout } = run(
        "strace",
        ..."-f -qq -o /dev/null -e trace=fcntl -P".split(" "),
        path,
        "-e",
        `inject=fcntl:error=${errno}`,
        Deno.execPath(),
        ..."run -q --no-check --allow-ffi".split(" "),
        `${scratch.path}/try.ts`,
      );
      assertEquals(stdout.trim(), `${MiB}`, errno);
    }
    scratch.check();
  });

  it(
    "moves the lock with setStatus(), unless that fails",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const sizelimit = 4096;
      await using a = await attach(path, { sizelimit });
      await using b = await attach(path, { offset: 4096, sizelimit });
      const error = assertThrows(
        () => a.loop.setStatus({ sizelimit: 8192 }),
        LoopError,
      );
      assertEquals([error.code, error.path], ["EBUSY", b.path]);
      assertEquals(a.loop.getStatus().sizelimit, sizelimit);
      a.loop.setStatus({ offset: 65536 });
      await locked(path, { offset: 65536, sizelimit });
      await using c = await attach(path, { sizelimit });
      {
        using _held = holdExclusively(a.path);
        assertThrows(() => a.loop.setStatus({ offset: 131072 }), LoopError);
      }
      await locked(path, { offset: 65536, sizelimit });
      await using d = await attach(path, { offset: 131072, sizelimit });
      for (const device of [a, b, c, d]) await device.detach();
    }),
  );

  it(
    "locks the new file before changeFd() exchanges it, and unlocks the old one",
    withScratch(async (scratch) => {
      const [first, second] = [
        scratch.image(MiB, "first"),
        scratch.image(MiB, "second"),
      ];
      await using a = await attach(first, { readOnly: true });
      await using writer = await attach(second);
      using file = openFile(second, { readOnly: true });
      const error = assertThrows(() => a.loop.changeFd(file.fd), LoopError);
      assertEquals([error.code, error.path], ["EBUSY", writer.path]);
      // Its own lock is in the way, but not the reason.
      const refused = assertThrows(
        () => writer.loop.changeFd(file.fd),
        LoopError,
        "must be read-only",
      );
      assertEquals([refused.code, refused.path], ["EINVAL", writer.path]);
      await writer.detach();
      a.loop.changeFd(file.fd);
      await locked(second);
      await using free = await attach(first);
      for (const device of [a, free]) await device.detach();
    }),
  );
});

describe("overlap()", () => {
  it("handles ranges without an end", () => {
    const range = (start: number, length: number) => ({
      start: BigInt(start),
      length: BigInt(length),
    });
    const cases: [number, number, number, number, boolean][] = [
      [0, 0, 0, 0, true],
      [0, 512, 512, 512, false],
      [0, 513, 512, 512, true],
      [512, 0, 0, 512, false],
      [512, 0, 0, 513, true],
      [1024, 0, 4096, 512, true],
      [100, 50, 120, 5, true],
    ];
    for (const [start, length, otherStart, otherLength, expected] of cases) {
      const a = range(start, length);
      const b = range(otherStart, otherLength);
      assertEquals(overlap(a, b), expected);
      assertEquals(overlap(b, a), expected);
    }
  });
});

/** Attaches a file to a device, like another program, and adds a partition. */
function attachTheirs(device: OwnDevice, scratch: Scratch): void {
  runOk("losetup", device.path, scratch.image(MiB, "theirs"));
  runOk("addpart", device.path, "1", "8", "8");
}

describe("attach()", onDevices, () => {
  it(
    ...unless(
      dropsPartitions(),
      "removes leftover partitions of the previous file",
    ),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      const leaveBehind = () => {
        runOk("losetup", own.path, path);
        runOk("addpart", own.path, "1", "8", "8");
        runOk("addpart", own.path, "7", "64", "8");
        losetupDetach(own.path);
      };
      leaveBehind();
      // Beside udev, some kernels remove them at the first open.
      assert(hasUdev || Deno.statSync(`${own.path}p7`).isBlockDevice);
      {
        await using a = await attach(path, { minor: own.minor });
        assertEquals(partitionNames(own.name), []);
        assertEquals(a.minor, own.minor);
      }

      leaveBehind();
      let partition: Deno.FsFile | undefined;
      try {
        partition = Deno.openSync(`${own.path}p1`);
      } catch (error) {
        if (!hasUdev) throw error;
      }
      if (partition !== undefined && partitionNames(own.name).length > 0) {
        const error = await assertRejects(
          () => attach(path, { minor: own.minor }),
          LoopError,
        );
        assertEquals(error.code, "EBUSY");
      } // otherwise the kernel removes them at the first open, or already has
      partition?.close();
      await using b = await attach(path, { minor: own.minor });
      await b.detach();
    }),
  );

  it(
    "does not try to bind an attached device with partitions",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      attachTheirs(own, scratch);
      using _held = holdExclusively(`${own.path}p1`);
      const error = await assertRejects(
        () => attach(scratch.image(), { minor: own.minor }),
        LoopError,
      );
      // If we held it exclusively for a moment, others could not format or mount it.
      assertEquals(error.operation, "LOOP_CONFIGURE");
    }),
  );

  it(
    "does not touch the partitions of an attached device",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      attachTheirs(own, scratch);
      await assertRejects(
        () => attach(scratch.image(), { minor: own.minor }),
        LoopError,
      );
      assert(Deno.statSync(`${own.path}p1`).isBlockDevice);
      assert(isSoon(() => run("delpart", own.path, "1").code === 0));
      using loop = new Loop(own.minor);
      assertEquals(loop.getStatus().autoclear, false);
    }),
  );
});
