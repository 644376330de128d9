import { partitionsOf } from "../../lib/kernel/loop_sysfs.ts";
import {
  attach,
  detach,
  Loop,
  LoopBusyError,
  LoopError,
  openFile,
  openMemory,
  type Partition,
  partitions,
  StaleDeviceError,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  attribute,
  boundDevices,
  cli,
  hasUdev,
  holdExclusively,
  isSoon,
  lacking,
  mounted,
  noDiskSequence,
  onDevices,
  OwnDevice,
  partitionNames,
  run,
  runOk,
  type Scratch,
  settle,
  traced,
  unless,
  withScratch,
} from "./support.ts";
import { mbrImage } from "../unit/partition_images.ts";
import { addPartition } from "../../lib/sys/blk_uapi.ts";
import { ioctlValue } from "../../lib/sys/libc.ts";

const MiB = 1 << 20;

/** Writes a table with sfdisk. */
function sfdisk(path: string, script: string, ...args: string[]): void {
  const { code, stderr } = run(
    "bash",
    "-c",
    'printf "%b" "$0" | sfdisk --quiet "$@"',
    script,
    ...args,
    path,
  );
  assert(code === 0, stderr);
}

/** Returns sfdisk's description of a table, in bytes. */
function theirs(path: string): Partial<Partition>[] {
  const { partitiontable } = JSON.parse(runOk("sfdisk", "--json", path));
  const { sectorsize, label } = partitiontable;
  return partitiontable.partitions.map((
    entry: Record<string, string | number>,
  ) => ({
    start: Number(entry.start) * sectorsize,
    size: Number(entry.size) * sectorsize,
    type: label === "gpt" ? entry.type : `0x${entry.type}`,
  }));
}

function extents(found: Partition[]): Partial<Partition>[] {
  return found.map(({ start, size, type = "" }) => ({ start, size, type }));
}

/** Creates an image with a GPT of three partitions. */
function gptImage(scratch: Scratch, name = "gpt.img"): string {
  const path = scratch.image(64 * MiB, name);
  sfdisk(path, "label: gpt\\nsize=8M, name=one\\nsize=16M\\nsize=4M\\n");
  return path;
}

/** Opens a file. Returns `false` if it does not exist. */
function canOpen(path: string): boolean {
  try {
    Deno.openSync(path).close();
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

describe("partitions()", onDevices, () => {
  it(
    "works with a limit that is not a safe integer",
    withScratch(async (scratch) => {
      await using device = await attach(scratch.image(), {
        sizelimit: 2n ** 62n,
      });
      assertEquals(await device.partitions(), []);
    }),
  );

  it(
    "creates the partitions of a GPT, with paths that can be opened",
    withScratch(async (scratch) => {
      const path = gptImage(scratch);
      await using a = await attach(path, { partscan: true });
      const found = await a.partitions();
      assertEquals(extents(found), theirs(path));
      assertEquals(found[0]!.name, "one");
      assertEquals(found.map(({ number }) => number), [1, 2, 3]);
      for (const { path, size } of found) {
        assertEquals(
          Number(runOk("blockdev", "--getsize64", path)),
          size,
        );
      }
      assertEquals(await partitions(a.path), found);
      assertEquals(await partitions(a), found);
      await a.detach();
      for (const { path } of found) {
        assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
      }
    }),
  );

  it(
    ...unless(
      hasUdev ? "udev may rescan, which takes time" : undefined,
      "creates partitions without time to wait",
    ),
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch));
      assertEquals((await a.partitions({ timeout: 0 })).length, 3);
      await a.detach();
    }),
  );

  it(
    "creates 250 partitions",
    withScratch(async (scratch) => {
      const path = scratch.image(300 * MiB);
      sfdisk(
        path,
        `label: gpt\\ntable-length: 250\\n${"size=1M\\n".repeat(250)}`,
      );
      await using a = await attach(path);
      const found = await partitions(a);
      assertEquals(found.length, 250);
      assertEquals(extents(found), theirs(path));
      assertEquals(partitionNames(`loop${a.minor}`).length, 250);
      await a.detach();
    }),
  );

  it(
    "creates partitions of a device attached without partscan, by any tool",
    withScratch(async (scratch) => {
      const device = runOk("losetup", "-f", "--show", gptImage(scratch));
      const found = await partitions(device);
      assertEquals(found.length, 3);
      await detach(device);
      assertThrows(() => Deno.statSync(found[0]!.path));
    }),
  );

  it(
    "creates the partitions of an MBR with logical ones",
    withScratch(async (scratch) => {
      const path = scratch.image(64 * MiB);
      sfdisk(
        path,
        "label: dos\\n1: size=4M,type=c\\n2: size=40M,type=5\\n5: size=4M\\n6: size=4M\\n7: size=4M\\n",
      );
      await using a = await attach(path, { partscan: true });
      const found = await a.partitions();
      assertEquals(extents(found), theirs(path));
      assertEquals(found.map(({ number }) => number), [1, 2, 5, 6, 7]);
      for (const { path, number, size } of found) {
        const shown = Number(runOk("blockdev", "--getsize64", path));
        assertEquals(shown, number === 2 ? 1024 : size);
      }
      await a.detach();
    }),
  );

  it(
    "creates logical partitions that begin in the first sectors of the extended one",
    withScratch(async (scratch) => {
      for (const first of [0, 1]) {
        const path = `${scratch.path}/logical${first}.img`;
        const image = mbrImage({
          slots: [{ start: 256, count: 1024, type: 5 }],
          records: [{ sector: 256, slots: [{ start: first, count: 100 }] }],
        });
        Deno.writeFileSync(path, image);
        await using a = await attach(path, { partscan: true });
        const [container, logical] = await a.partitions();
        assertEquals([container!.number, logical!.number], [1, 5]);
        assert(!/refuses/.test(`${logical!.problem}`), logical!.problem);
        assertEquals(
          Number(runOk("blockdev", "--getsize64", logical!.path)),
          51200,
        );
        // In its first sector, it leaves no space for the extended one.
        if (first === 1) {
          assertEquals(container!.problem, undefined);
          assert(canOpen(container!.path));
        }
        assertEquals(await a.partitions(), [container!, logical!]);
        await a.detach();
      }
    }),
  );

  it(
    "reads a table for sectors of 4096 bytes, and probes for it",
    withScratch(async (scratch) => {
      const path = scratch.image(64 * MiB);
      {
        await using a = await attach(path, { blockSize: 4096 });
        sfdisk(a.path, "label: gpt\\nsize=8M\\nsize=16M\\n");
      }
      {
        await using a = await attach(path, { partscan: true });
        const error = await assertRejects(() => a.partitions(), LoopError);
        assertEquals(error.code, "EUCLEAN");
        assertMatch(error.message, /sectors of 4096 bytes/);
      }
      await using a = await attach(path, {
        partscan: true,
        blockSize: "probe",
        directIo: true,
      });
      assertEquals(a.blockSize, 4096);
      assertEquals((await a.partitions()).map(({ size }) => size), [
        8 * MiB,
        16 * MiB,
      ]);
      await a.detach();
      const plain = scratch.image(MiB, "plain");
      await using b = await attach(plain, { blockSize: "probe" });
      assertEquals(b.blockSize, 512);
      await b.detach();
      const shown = cli("attach", "-b", "probe", path).stdout.trim();
      assertEquals(runOk("blockdev", "--getss", shown), "4096");
      assertEquals(cli("detach", shown).code, 0);
    }),
  );

  it(
    "probes after the offset",
    withScratch(async (scratch) => {
      const table = scratch.image(32 * MiB, "table");
      {
        await using a = await attach(table, { blockSize: 4096 });
        sfdisk(a.path, "label: gpt\\nsize=8M\\n");
      }
      const path = scratch.image(0, "whole");
      runOk("dd", "bs=1M", "seek=1", `if=${table}`, `of=${path}`);
      await using a = await attach(path, { offset: MiB, blockSize: "probe" });
      assertEquals(a.blockSize, 4096);
      assertEquals((await a.partitions()).length, 1);
      await a.detach();
    }),
  );

  it(
    "returns none without a table, and reports the damage of a damaged one",
    withScratch(async (scratch) => {
      using memory = openMemory(MiB);
      await using bare = await attach(memory, { partscan: true });
      assertEquals(await bare.partitions(), []);
      await bare.detach();

      const path = gptImage(scratch);
      {
        using file = Deno.openSync(path, { write: true });
        for (const at of [512 + 24, 64 * MiB - 512 + 24]) {
          file.seekSync(at, Deno.SeekMode.Start);
          file.writeSync(new Uint8Array(8).fill(0xee));
        }
      }
      await using a = await attach(path);
      const error = await assertRejects(() => a.partitions(), LoopError);
      assertEquals(error.code, "EUCLEAN");
      assertMatch(error.message, /Cannot read the partition table/);
      await a.detach();
    }),
  );

  it(
    "follows a changed table",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch), { partscan: true });
      assertEquals((await a.partitions()).length, 3);
      sfdisk(a.path, "label: gpt\\nsize=2M\\nsize=2M\\n", "--no-reread");
      const found = await a.partitions();
      assertEquals(found.map(({ size }) => size), [2 * MiB, 2 * MiB]);
      for (const { path, size } of found) {
        assertEquals(Number(runOk("blockdev", "--getsize64", path)), size);
      }
      await a.detach();
    }),
  );

  it(
    "names the partition in use at its old position",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch), { partscan: true });
      const [first] = await a.partitions();
      using _open = Deno.openSync(first!.path);
      sfdisk(a.path, "label: gpt\\nstart=4M,size=2M\\n", "--no-reread");
      const error = await assertRejects(() => a.partitions(), LoopError);
      assertEquals(error.code, "EBUSY");
      assertMatch(error.message, new RegExp(first!.path));
      _open.close();
      await a.detach();
    }),
  );

  it(
    "moves unused partitions to the positions of another table",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch), { partscan: true });
      assertEquals((await a.partitions()).length, 3);
      sfdisk(a.path, "label: gpt\nsize=40M\n", "--no-reread");
      const found = await a.partitions();
      assertEquals(found.map(({ size }) => size), [40 * MiB]);
      assertEquals(partitionNames(`loop${a.minor}`), [`loop${a.minor}p1`]);
      await a.detach();
    }),
  );

  it(
    "enlarges a mounted partition that grew in place",
    withScratch(async (scratch) => {
      const path = scratch.image(64 * MiB);
      sfdisk(path, "label: dos\nstart=2048,type=83\n");
      await using a = await attach(path, { partscan: true });
      const [first] = await a.partitions();
      runOk("mkfs.ext4", "-q", first!.path);
      const target = `${scratch.path}/target`;
      Deno.mkdirSync(target);
      using _mount = mounted(first!.path, target);
      Deno.truncateSync(path, 96 * MiB);
      a.loop.setCapacity();
      sfdisk(a.path, "label: dos\nstart=2048,type=83\n", "--no-reread", "-f");
      const [grown] = await a.partitions();
      assertEquals(grown!.size, 95 * MiB);
      assertEquals(
        Number(runOk("blockdev", "--getsize64", grown!.path)),
        95 * MiB,
      );
      sfdisk(
        a.path,
        "label: dos\nstart=2048,size=8M,type=83\n",
        "--no-reread",
        "-f",
      );
      const error = await assertRejects(() => a.partitions(), LoopBusyError);
      assertEquals(error.holders.map(({ kind }) => kind), ["mount"]);
      assertMatch(error.message, new RegExp(`mounted on ${target}`));
      _mount[Symbol.dispose]();
      assertEquals((await a.partitions())[0]!.size, 8 * MiB);
      await a.detach();
    }),
  );

  it(
    "leaves a partition in place that the kernel cut off within a sector of the disk",
    withScratch(async (scratch) => {
      const END = 16 * MiB + 1536; // no multiple of 4096
      const path = scratch.image(END);
      const image = mbrImage({
        sectorSize: 4096,
        slots: [{ start: 256, count: 1 << 20 }],
      });
      using file = Deno.openSync(path, { write: true });
      file.writeSync(image.subarray(0, 512));
      await using a = await attach(path);
      // On some kernels before 7.1, the first open after attaching drops partitions.
      Deno.openSync(a.path).close();
      // BLKPG adds only whole blocks, the kernel's parsers those of 512 bytes.
      const extent = { number: 1, start: MiB, size: END - MiB };
      assertEquals(addPartition(a.loop.fd, extent), 0);
      a.loop.setBlockSize(4096);
      using _open = Deno.openSync(`${a.path}p1`);
      const [partition, ...others] = await a.partitions();
      assertEquals(others, []);
      assertEquals([partition!.start, partition!.size], [MiB, 15 * MiB]);
      assertMatch(partition!.problem!, /^cut off at the end of the disk[^;]*$/);
      assertEquals(
        attribute(`loop${a.minor}`, `loop${a.minor}p1/size`),
        `${extent.size / 512}`,
      );
      const shown = JSON.parse(cli("show", "--json", a.path).stdout);
      assertEquals(shown.devices[0].partitions, [partition]);
      _open.close();
      await a.detach();
    }),
  );

  it(
    "changes nothing if a partition in use would have to move",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch), { partscan: true });
      const before = await a.partitions();
      using open = Deno.openSync(before[1]!.path);
      sfdisk(
        a.path,
        "label: gpt\nstart=20M,size=8M\nstart=40M,size=8M\n",
        "--no-reread",
      );
      await assertRejects(() => a.partitions(), LoopBusyError);
      assertEquals(
        before.map(({ path }) =>
          Number(runOk("blockdev", "--getsize64", path))
        ),
        before.map(({ size }) => size),
      );
      open.close();
      assertEquals((await a.partitions()).length, 2);
      await a.detach();
    }),
  );

  it(
    "names partitions that it could not restore beside one in use",
    withScratch(async (scratch) => {
      const path = scratch.image(64 * MiB);
      const table = (script: string) =>
        sfdisk(path, `label: dos\\n${script}`, "--no-reread");
      table("start=40M,size=8M\nstart=2M,size=8M\n");
      await using a = await attach(path, { partscan: true });
      const [first, second] = await a.partitions();
      {
        using _open = Deno.openSync(second!.path);
        // The first one is then no longer on the disk, and cannot be added there again.
        Deno.truncateSync(path, 32 * MiB);
        a.loop.setCapacity();
        table("start=4M,size=4M\nstart=12M,size=4M\n");
        a.loop.flushBuffers();
        const error = await assertRejects(() => a.partitions(), LoopBusyError);
        assertMatch(error.message, new RegExp(`"${second!.path}".*in use`));
        // Linux 5.10 adds partitions beyond the end of the disk.
        const isRestored = partitionsOf(a.minor).length === 2;
        assertMatch(
          error.message,
          isRestored
            ? /nothing was changed/
            : new RegExp(`restored: ${first!.path};`),
        );
        assertEquals(error.message.includes("nothing was changed"), isRestored);
      }
      settle();
      assertEquals((await a.partitions()).map(({ start }) => start / MiB), [
        4,
        12,
      ]);
      await a.detach();
    }),
  );

  it(
    "keeps a partition in use that is no longer in the table, and reports it",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch), { partscan: true });
      const [, second] = await a.partitions();
      using open = Deno.openSync(second!.path);
      sfdisk(a.path, "label: gpt\nstart=40M,size=8M\n", "--no-reread");
      settle(); // udev has all of them open for a moment
      const found = await a.partitions();
      assertEquals(found.map(({ number, problem }) => [number, problem]), [
        [1, undefined],
        [2, "in use, but no longer in the table"],
      ]);
      open.close();
      settle();
      assertEquals((await a.partitions()).length, 1);
      await a.detach();
    }),
  );

  it(
    "lists partitions whose table only the kernel can read, without a type",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image(8 * MiB), { partscan: true });
      assertEquals(
        addPartition(a.loop.fd, { number: 3, start: MiB, size: 2 * MiB }),
        0,
      );
      assertEquals(await a.partitions(), [
        { number: 3, path: `${a.path}p3`, start: MiB, size: 2 * MiB },
      ]);
      await a.detach();
    }),
  );

  it(
    "keeps slices that the kernel found in a partition of an MBR",
    withScratch(async (scratch) => {
      const path = scratch.image(32 * MiB);
      sfdisk(path, "label: dos\nstart=2M,size=8M,type=a5\n");
      await using a = await attach(path, { partscan: true });
      await a.partitions();
      // This kernel may not know them, or may refuse to add them over another
      // partition.
      const extent = { number: 5, start: 2 * MiB, size: MiB };
      if (addPartition(a.loop.fd, extent) === 0) {
        assertEquals((await a.partitions()).length, 2);
      }
      await a.detach();
    }),
  );

  it(
    "does not take partitions of the earlier table for slices of new ones",
    withScratch(async (scratch) => {
      const path = scratch.image(32 * MiB);
      const table = (script: string) => sfdisk(path, script, "--no-reread");
      table(
        "label: dos\n1: start=1M,size=2M\n2: start=4M,size=20M,type=5\n5: start=12M,size=2M\n",
      );
      await using a = await attach(path, { partscan: true });
      assertEquals((await a.partitions()).length, 3);
      // Type 0x82 is both Solaris and Linux swap.
      table("label: dos\n1: start=1M,size=20M,type=82\n");
      a.loop.flushBuffers();
      const found = await a.partitions();
      assertEquals(
        found.map(({ number, size, problem }) => [number, size, problem]),
        [[1, 20 * MiB, undefined]],
      );
      assertEquals(
        attribute(`loop${a.minor}`, `loop${a.minor}p1/size`),
        `${20 * 2048}`,
      );
      await a.detach();
    }),
  );

  it(
    "lists both of two overlapping partitions, and the problem of the second",
    withScratch(async (scratch) => {
      const path = scratch.image(32 * MiB);
      sfdisk(path, "label: dos\nstart=2M,size=8M\nstart=12M,size=8M\n");
      {
        using file = Deno.openSync(path, { write: true });
        file.seekSync(446 + 16 + 8, Deno.SeekMode.Start);
        file.writeSync(new Uint8Array([0, 0x20, 0, 0])); // 4 MiB
      }
      await using a = await attach(path, { partscan: true });
      const found = await a.partitions();
      assertEquals(found.map(({ start }) => start / MiB), [2, 4]);
      assertEquals(found[0]!.problem, "overlaps partition 2");
      assertMatch(found[1]!.problem!, /^overlaps partition 1/);
      assertEquals(await a.partitions(), found);
      await a.detach();
    }),
  );

  it(
    "reports at once why a node may not be opened",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { path } = own;
      assertEquals(
        cli("attach", "-P", "--device", path, gptImage(scratch)).code,
        0,
      );
      const node = `${path}p2`;
      const { code, stderr } = run(
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind "$0" "$0" && mount -o remount,bind,nodev "$0" && exec "$@"',
        node,
        Deno.execPath(),
        ..."run --quiet --allow-all".split(" "),
        new URL("../../cli.ts", import.meta.url).pathname,
        "partitions",
        path,
      );
      assertEquals(code, 1);
      assertMatch(stderr, new RegExp(`Cannot open "${node}"`));
      assertMatch(stderr, /EACCES.*nodev/);
      assertEquals(cli("detach", path).code, 0);
    }),
  );

  it(
    "names a node that does not appear",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch), { partscan: true });
      const [, second] = await a.partitions();
      Deno.removeSync(second!.path);
      const error = await assertRejects(
        () => a.partitions({ timeout: 30 }),
        LoopError,
      );
      assertEquals(error.code, "ETIMEDOUT");
      assertMatch(error.message, new RegExp(`${second!.path} did not appear`));
      await a.detach();
    }),
  );

  it(
    "refuses a free device",
    withScratch(async () => {
      using own = new OwnDevice();
      const free = await assertRejects(() => partitions(own.path), LoopError);
      assertEquals(free.code, "ENXIO");
    }),
  );

  it(
    ...unless(noDiskSequence, "refuses a recycled device"),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const a = await attach(scratch.image(), { minor: own.minor });
      const { minor, diskSequence } = a;
      await a.detach();
      runOk("losetup", own.path, scratch.image());
      await assertRejects(
        () => partitions({ minor, diskSequence }),
        StaleDeviceError,
      );
    }),
  );

  it(
    "does not touch existing partitions if there is no table or a damaged one",
    withScratch(async (scratch) => {
      for (const damage of ["none", "header"]) {
        const path = damage === "none"
          ? scratch.image(16 * MiB, damage)
          : gptImage(scratch, damage);
        if (damage === "header") {
          using file = Deno.openSync(path, { write: true });
          for (const at of [512, Deno.statSync(path).size - 512]) {
            file.seekSync(at + 40, Deno.SeekMode.Start);
            file.writeSync(new Uint8Array(8).fill(0xff));
          }
        }
        using own = new OwnDevice();
        await using device = await attach(path, { minor: own.minor });
        runOk("addpart", own.path, "9", "4096", "64");
        if (damage === "none") {
          const [partition] = await partitions(device.minor);
          assertEquals(partition?.number, 9);
        } else {
          const error = await assertRejects(
            () => partitions(device.minor),
            LoopError,
          );
          assertEquals(error.code, "EUCLEAN");
        }
        assertEquals(partitionNames(own.name), [`${own.name}p9`]);
        using loop = new Loop(own.minor, { readOnly: true });
        assertEquals(loop.getStatus().partscan, false);
      }
    }),
  );

  it(
    "throws if the file is exchanged while it waits",
    withScratch(async (scratch) => {
      const path = scratch.image(16 * MiB);
      const one = (start: number): void =>
        sfdisk(
          path,
          `label: dos\\nstart=${start},size=8192,type=83\\n`,
          "--force",
          "--no-reread",
          "--no-tell-kernel",
        );
      one(2048);
      using other = openFile(scratch.image(16 * MiB, "other"), {
        readOnly: true,
      });
      using own = new OwnDevice();
      await using device = await attach(path, {
        minor: own.minor,
        readOnly: true,
        partscan: true,
        overlap: "allow",
      });
      await device.partitions();
      one(4096);
      runOk("blockdev", "--flushbufs", own.path);
      const held = Deno.openSync(`${own.path}p1`);
      const showing = partitions(own.path);
      const refused = assertRejects(() => showing, StaleDeviceError);
      await new Promise((resolve) => setTimeout(resolve, 50));
      {
        using loop = new Loop(own.minor, { readOnly: true });
        const LOOP_CHANGE_FD = 0x4c06;
        assertEquals(ioctlValue(loop.fd, LOOP_CHANGE_FD, BigInt(other.fd)), 0);
      }
      held.close();
      await refused;
    }),
  );

  it(
    "creates partitions on a disk that is held exclusively, removed on detaching",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      await using a = await attach(gptImage(scratch), { minor: own.minor });
      {
        // From Linux 6.19 on, partscan cannot be turned on while it is held.
        using _holder = holdExclusively(a.path);
        assertEquals((await a.partitions()).length, 3);
      }
      for (const { path } of await a.partitions()) Deno.openSync(path).close();
      await a.detach();
      assertEquals(partitionNames(own.name), []);
    }),
  );

  it(
    "waits for a process that holds the disk exclusively for a moment",
    withScratch(async (scratch) => {
      await using a = await attach(gptImage(scratch));
      const holder = holdExclusively(a.path);
      setTimeout(() => holder.close(), 100);
      assertEquals((await a.partitions()).length, 3);
      assertEquals(a.loop.getStatus().partscan, true);
      await a.detach();
    }),
  );

  it(
    ...unless(
      lacking("strace"),
      "writes back much on another thread before it turns partscan on",
    ),
    withScratch((scratch) => {
      const path = gptImage(scratch);
      const script = `
        import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
        await using a = await attach("${path}");
        a.loop.write(new Uint8Array(32 << 20).fill(7), 30 << 20);
        const found = await a.partitions();
        console.log(Deno.pid, found.length, a.loop.getStatus().partscan);`;
      Deno.writeTextFileSync(`${scratch.path}/dirty.ts`, script);
      const { stdout, trace } = traced(
        `${scratch.path}/dirty.ts`,
        "sync_file_range,ioctl",
      );
      const [pid, ...rest] = stdout.trim().split(" ");
      assertEquals(rest, ["3", "true"]);
      const calls = trace.split("\n")
        .filter((line) => /sync_file_range|LOOP_SET_STATUS64/.test(line))
        .map((line) => line.trim().split(/\s+/));
      // Turning partscan on writes back on the thread that calls it.
      const [first, second] = calls;
      assertMatch(first![1]!, /^sync_file_range/);
      assert(first![0] !== pid, "it blocked the event loop");
      assert(second !== undefined);
      const image = Deno.readFileSync(path);
      assert(image.subarray(30 << 20, 62 << 20).every((byte) => byte === 7));
    }),
  );

  it(
    ...unless(
      lacking("strace"),
      "closes the device and its partitions on another thread",
    ),
    withScratch((scratch) => {
      const script = `
        import { attach, partitions } from "${new URL(
        "../../mod.ts",
        import.meta.url,
      )}";
        const a = await attach("${gptImage(scratch)}");
        const found = partitions(a.path);
        await new Promise((resolve) => setTimeout(resolve, 0));
        a.loop.close(); // the other close is then the last one
        console.log(Deno.pid, (await found).length);`;
      Deno.writeTextFileSync(`${scratch.path}/close.ts`, script);
      const { stdout, trace } = traced(
        `${scratch.path}/close.ts`,
        "close",
        "-y",
      );
      const [pid, count] = stdout.trim().split(" ");
      assertEquals(count, "3");
      const closed = new Map<string, string>();
      for (
        const [, thread, path] of trace
          .matchAll(/^(\d+) +close\(\d+<(\/dev\/loop\d[^>]*)/gm)
      ) closed.set(path!, thread!);
      assertEquals(closed.size, 4, "the disk and three partitions");
      for (const [path, thread] of closed) {
        assert(thread !== pid, `${path} was last closed on the main thread`);
      }
      assert(isSoon(() => scratch.devices().length === 0));
    }),
  );

  it(
    "creates usable partitions that disappear on detaching, 200 times",
    withScratch(async (scratch) => {
      const path = gptImage(scratch);
      for (let round = 0; round < 200; round++) {
        await using a = await attach(path, { partscan: true });
        const found = await a.partitions();
        assertEquals(found.length, 3);
        // udev may make the kernel read the table again, so that partitions disappear for
        // a moment.
        for (const { path } of found) assert(isSoon(() => canOpen(path)), path);
        if (round % 10 === 0) {
          assert(
            isSoon(() =>
              run("mkfs.ext4", "-q", "-F", found[1]!.path).code === 0
            ),
          );
        }
        await a.detach();
        const left = found.filter(({ path }) => {
          try {
            return Deno.statSync(path).isBlockDevice;
          } catch {
            return false;
          }
        });
        assertEquals(left, []);
      }
    }),
  );

  it(
    "creates partitions that disappear if the process is killed",
    withScratch((scratch) => {
      const path = gptImage(scratch);
      const script = `
        import { attach } from "${new URL("../../mod.ts", import.meta.url)}";
        const a = await attach("${path}", { partscan: true });
        console.log((await a.partitions()).map(({ path }) => path).join(" "));
        Deno.kill(Deno.pid, "SIGKILL");`;
      Deno.writeTextFileSync(`${scratch.path}/kill.ts`, script);
      const { stdout } = run(
        Deno.execPath(),
        ..."run -q --no-check --allow-ffi --allow-run".split(" "),
        `${scratch.path}/kill.ts`,
      );
      const paths = stdout.trim().split(" ");
      assertEquals(paths.length, 3);
      const disk = paths[0]!.replace(/p\d+$/, "").replace("/dev/", "");
      assert(isSoon(() => partitionNames(disk).length === 0));
    }),
  );

  it(
    "follows when the command line exchanges the file or resizes the device",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { path } = own;
      const sizes = () =>
        partitionNames(`loop${own.minor}`)
          .map((name) => attribute(`loop${own.minor}`, `${name}/size`));
      const [one, two] = [16, 16].map((size, index) =>
        scratch.image(size * MiB, `file${index}`)
      );
      sfdisk(one!, "label: dos\nsize=2M\nsize=2M\n");
      sfdisk(two!, "label: dos\nsize=4M\n");
      assertEquals(
        cli("attach", "-r", "-P", "--device", path, one!).code,
        0,
      );
      assertEquals(sizes(), ["4096", "4096"]);
      assertEquals(cli("swap", path, two!).code, 0);
      assertEquals(sizes(), ["8192"]);
      Deno.truncateSync(two!, 32 * MiB);
      sfdisk(two!, "label: dos\nsize=20M\n");
      assertEquals(cli("resize", path).stderr, "");
      assertEquals(sizes(), [`${20 * 2048}`]);
      assertEquals(cli("detach", path).code, 0);
    }),
  );

  it(
    "reports the current file systems",
    withScratch(async (scratch) => {
      const path = gptImage(scratch);
      await using a = await attach(path, { partscan: true });
      const [, second] = await a.partitions();
      assertEquals(second!.fileSystem, undefined);
      runOk("mkfs.ext4", "-q", "-F", "-L", "root", second!.path);
      const uuid = runOk(
        "blkid",
        "-p",
        "-s",
        "UUID",
        "-o",
        "value",
        second!.path,
      );
      const fileSystem = { type: "ext4", label: "root", uuid };
      assertEquals((await a.partitions())[1]!.fileSystem, fileSystem);
      await a.detach();
      assertEquals((await partitions(path))[1]!.fileSystem, fileSystem);
    }),
  );

  it(
    "reads a file without attaching it",
    withScratch(async (scratch) => {
      const path = gptImage(scratch);
      const found = await partitions(path);
      assertEquals(extents(found), theirs(path));
      const { partitiontable } = JSON.parse(runOk("sfdisk", "--json", path));
      assertEquals(
        found.map(({ path }) => path),
        partitiontable.partitions.map(({ node }: { node: string }) => node),
      );
      assertEquals(boundDevices().filter(({ file }) => file === path), []);
      const json = JSON.parse(cli("partitions", "--json", path).stdout);
      assertEquals(json.partitions, found);
      const missing = await assertRejects(
        () => partitions(`${scratch.path}/none`),
        LoopError,
      );
      assertEquals(missing.code, "ENOENT");
    }),
  );

  it(
    "shows partitions with their file systems, and changes nothing",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { path } = own;
      const args = ["attach", "-P", "--device", path];
      const show = () =>
        JSON.parse(cli("show", "--json", path).stdout).devices[0];
      assertEquals(cli(...args, gptImage(scratch)).code, 0);
      runOk("mkfs.ext4", "-q", "-F", "-L", "root", `${path}p2`);
      const shown = show();
      assertEquals(shown.fileSystem, undefined);
      const json = JSON.parse(cli("partitions", "--json", path).stdout);
      assertEquals(shown.partitions, json.partitions);
      assertMatch(cli("show", path).stdout, /p2 .* ext4 "root"/);
      runOk("partx", "-d", path);
      assertEquals(show().partitions, []);
      assertEquals(partitionNames(`loop${own.minor}`), []);
      assertEquals(cli("detach", path).code, 0);

      const plain = scratch.image(16 * MiB, "plain");
      runOk("mkfs.ext4", "-q", "-F", "-L", "whole", plain);
      assertEquals(cli("attach", "--device", path, plain).code, 0);
      assertEquals(show().fileSystem.label, "whole");
      assertEquals(cli("detach", path).code, 0);
    }),
  );

  it(
    "lists partitions by the command line",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const device = own.path;
      assertEquals(
        cli("attach", "-P", "--device", device, gptImage(scratch)).code,
        0,
      );
      const { code, stdout } = cli("partitions", device);
      assertEquals(code, 0);
      assertMatch(stdout, /^NAME +START +SIZE TYPE +FSTYPE +LABEL +UUID\n/);
      assertEquals(stdout.trim().split("\n").length, 4);
      const json = JSON.parse(cli("partitions", device, "--json").stdout);
      assertEquals(json.partitions.length, 3);
      assertEquals(json.partitions[0].path, `${device}p1`);
      assertEquals(cli("detach", device).code, 0);
      assertEquals(cli("partitions", device).code, 1);
    }),
  );
});
