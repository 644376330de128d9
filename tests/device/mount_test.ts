/** Compares mounting with mount(8), findmnt, e2fsck and the kernel's tables. */
import {
  attach,
  describeHolder,
  holders,
  LoopBusyError,
  LoopError,
  Mount,
  mount,
  type MountOptions,
  openFile,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { checkPath } from "../../lib/arguments.ts";
import {
  numbersOf,
  PublicMount,
  Target,
} from "../../lib/mounting/public_mount.ts";
import { inNamespace, TMPFS_DEV } from "./namespace.ts";
import {
  attribute,
  isSoon,
  lacking,
  mounted,
  onDevices,
  OwnDevice,
  run,
  runOk,
  type Scratch,
  Undo,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

/** Makes an image with an ext4, and a file in it. */
function ext4(scratch: Scratch, name = "ext4.img", size = 8 * MiB): string {
  const image = scratch.image(size, name);
  runOk("mkfs.ext4", "-q", "-F", "-L", "label", image);
  return image;
}

function directory(scratch: Scratch, name = "mnt"): string {
  const path = `${scratch.path}/${name}`;
  Deno.mkdirSync(path);
  return path;
}

/** Makes an image with a GPT, and fills its partitions of 8 MiB with these commands. */
function partitioned(
  scratch: Scratch,
  partitions: { name: string; make?: string }[],
): string {
  const image = scratch.image((2 + 8 * partitions.length) * MiB, "disk.img");
  const table = partitions.map(({ name }) => `size=8M, name=${name}`);
  runOk(
    "bash",
    "-c",
    `printf 'label: gpt\n${table.join("\\n")}\n' | sfdisk -q ${image}`,
  );
  partitions.forEach(({ make }, index) => {
    if (make === undefined) return;
    const part = scratch.image(8 * MiB, "part.img");
    runOk("bash", "-c", `${make} ${part}`);
    runOk(
      "dd",
      ...[`if=${part}`, `of=${image}`, "bs=1M", `seek=${1 + 8 * index}`],
      ...["conv=notrunc", "status=none"],
    );
  });
  return image;
}

const EXT4 = "mkfs.ext4 -q -F";

/** Writes a superblock of a Btrfs, which is before the first partition. */
function writeBtrfs(image: string): void {
  const superblock = new Uint8Array(4096);
  superblock.set(new TextEncoder().encode("_BHRfS_M"), 64);
  using file = Deno.openSync(image, { write: true });
  file.seekSync(65536, Deno.SeekMode.Start);
  file.writeSync(superblock);
}

/** Makes an image with a GPT for sectors of 4096 bytes, and an ext4 on its partition. */
async function with4096(scratch: Scratch): Promise<string> {
  const image = scratch.image(16 * MiB, "4096.img");
  await using device = await attach(image, { blockSize: 4096 });
  const table = "label: gpt\\nsize=8M\\n";
  runOk("sh", "-c", `printf '${table}' | sfdisk -q ${device.path} 2>&1`);
  const [partition] = await device.partitions();
  runOk("mkfs.ext4", "-q", partition!.path);
  return image;
}

/** Returns the mounts of this process below a path, as reported by findmnt. */
function mountsAt(path: string): { source: string; options: string }[] {
  const { stdout } = run(
    "findmnt",
    ..."--json --output SOURCE,OPTIONS,TARGET --list".split(" "),
    ...["--mountpoint", path],
  );
  return stdout === "" ? [] : JSON.parse(stdout).filesystems;
}

function mountinfo(): string {
  return Deno.readTextFileSync("/proc/self/mountinfo");
}

/** Checks that the file system of an image that is not mounted is intact. */
function checkImage(image: string): void {
  const { code, stdout } = run("e2fsck", "-f", "-n", image);
  assertEquals(code, 0, stdout);
}

/** Reads a file in an image with another program. */
function contentOf(image: string, file: string): string {
  return run("debugfs", "-R", `cat ${file}`, image).stdout;
}

/** Starts a process that keeps a directory busy until disposal. */
function sleepIn(cwd: string): AsyncDisposable & { pid: number } {
  const child = new Deno.Command("sleep", { args: ["1000"], cwd }).spawn();
  return {
    pid: child.pid,
    async [Symbol.asyncDispose](): Promise<void> {
      child.kill("SIGKILL");
      await child.status;
    },
  };
}

/** Starts a shell that has a file open, and waits until it reports so. */
async function reader(file: string): Promise<AsyncDisposable> {
  const child = new Deno.Command("sh", {
    args: ["-c", 'exec 3< "$0"; echo ready; exec sleep 1000', file],
    stdout: "piped",
  }).spawn();
  const output = child.stdout.getReader();
  await output.read();
  return {
    async [Symbol.asyncDispose](): Promise<void> {
      child.kill("SIGKILL");
      await child.status;
      await output.cancel();
    },
  };
}

/** Returns the number of a mount in mountinfo, which the kernel reuses. */
function numberOf(target: string): string {
  return runOk("findmnt", "-n", "-o", "ID", "--mountpoint", target);
}

/** Reason to skip a test that needs unique mount IDs; `undefined` if it runs. */
function lackingUniqueIds(): string | undefined {
  const [major, minor] = Deno.osRelease().split(".").map(Number);
  return major! > 6 || (major === 6 && minor! >= 8)
    ? undefined
    : "there are no unique mount IDs before Linux 6.8";
}

/** Returns the mount on a directory, as `Mount` keeps it. */
function mountOn(directory: string, source: string): PublicMount {
  using target = new Target(checkPath(directory));
  return new PublicMount(target.path, numbersOf(target.fd, source));
}

/** More than the threads that Deno has for calls that block. */
const THREADS = 64;

/** Has nonblocking calls wait until disposal: every thread opens a FIFO. */
function occupyThreads(scratch: Scratch): AsyncDisposable {
  const fifo = `${scratch.path}/fifo`;
  runOk("mkfifo", fifo);
  const opens = Array.from({ length: THREADS }, () => Deno.open(fifo));
  return {
    async [Symbol.asyncDispose](): Promise<void> {
      using _writer = Deno.openSync(fifo, { read: true, write: true });
      for (const open of opens) (await open).close();
      Deno.removeSync(fifo);
    },
  };
}

/** Returns the reason to skip a test that occupies the threads. */
function lackingThreads(): string | undefined {
  return Deno.version.deno.startsWith("2.5.")
    ? "Deno 2.5 hangs while it opens a FIFO"
    : undefined;
}

/** Lets everything run that does not wait for a thread. */
async function moment(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 50));
}

async function rejection(
  source: Parameters<typeof mount>[0],
  options: Parameters<typeof mount>[1] = {},
): Promise<LoopError> {
  return await assertRejects(() => mount(source, options), LoopError);
}

describe("mount() without target", onDevices, () => {
  it(
    "makes a mount that is not in mountinfo, and leaves no device",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      {
        await using disk = await mount(image);
        assertMatch(disk.path, new RegExp(`^/proc/${Deno.pid}/fd/\\d+$`));
        assertEquals(disk.type, "ext4");
        assertEquals(disk.readOnly, false);
        assertEquals(scratch.devices(), [disk.source]);
        assertEquals(mountinfo().includes(` ${disk.source} `), false);
        Deno.writeTextFileSync(`${disk.path}/hello`, "from here");
        // A child of this process also reaches the mount.
        assertEquals(runOk("cat", `${disk.path}/hello`), "from here");
      }
      checkImage(image);
      assertEquals(contentOf(image, "hello"), "from here");
    }),
  );

  it(
    "sets nosuid and nodev by default, and the requested attributes",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const flagsOf = async (options: MountOptions): Promise<string[]> => {
        await using disk = await mount(image, options);
        Deno.writeTextFileSync(`${disk.path}/program`, "#!/bin/sh\n");
        Deno.chmodSync(`${disk.path}/program`, 0o755);
        runOk("mknod", "-m", "666", `${disk.path}/null`, "c", "1", "3");
        const runs = run("sh", "-c", `${disk.path}/program`).code === 0;
        const opens = run("sh", "-c", `: > ${disk.path}/null`).code === 0;
        Deno.removeSync(`${disk.path}/null`);
        return [...runs ? ["exec"] : [], ...opens ? ["dev"] : []];
      };
      assertEquals(await flagsOf({}), ["exec"]);
      assertEquals(await flagsOf({ noDev: false }), ["exec", "dev"]);
      assertEquals(await flagsOf({ noExec: true }), []);
    }),
  );

  it(
    "is seen by holders() as a file",
    withScratch(async (scratch) => {
      await using disk = await mount(ext4(scratch));
      const found = await holders(disk.source);
      const files = found.holders.filter(({ kind }) => kind === "file");
      assertEquals(files, [
        {
          kind: "file",
          device: disk.source,
          pid: Deno.pid,
          command: "deno",
          path: "/",
        },
      ]);
      assertEquals(
        describeHolder(files[0]!),
        "not mounted on any directory, but in use by this process: /",
      );
    }),
  );

  it(
    "keeps its device busy until it is unmounted",
    withScratch(async (scratch) => {
      await using device = await attach(ext4(scratch));
      const disk = await device.mount();
      const error = await assertRejects(
        () => device.detach({ timeout: 50 }),
        LoopBusyError,
      );
      assertEquals(error.holders.map(({ kind }) => kind), ["file"]);
      await disk.unmount();
      await device.detach();
    }),
  );

  it(
    "is pending while a file is open in it, and unmount() waits again",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const disk = await mount(image);
      Deno.writeTextFileSync(`${disk.path}/open`, "open");
      {
        await using _reader = await reader(`${disk.path}/open`);
        const error = await assertRejects(
          () => disk.unmount({ timeout: 50 }),
          LoopBusyError,
        );
        assertEquals(error.holders.map(({ kind }) => kind), ["file"]);
        assertMatch(error.message, /^Cannot unmount .* in use by process \d+/);
        await disk[Symbol.asyncDispose](); // does not wait a second time
        await assertRejects(() => disk.unmount({ timeout: 0 }), LoopBusyError);
      }
      await disk.unmount();
      assertEquals(scratch.devices(), []);
      checkImage(image);
    }),
  );

  it(
    "waits for open files, but leaves a device attached that it did not attach",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      await using device = await attach(image);
      const disk = await mount(device.path);
      Deno.writeTextFileSync(`${disk.path}/open`, "open");
      {
        await using _reader = await reader(`${disk.path}/open`);
        await assertRejects(() => disk.unmount({ timeout: 50 }), LoopBusyError);
        await disk.unmount({ lazy: true });
      }
      await disk.unmount();
      await disk.unmount();
      assertEquals(scratch.devices(), [device.path]);
    }),
  );

  it(
    "is unmounted once another file is attached to its device, whoever mounts that",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const device = await attach(ext4(scratch), { minor: own.minor });
      const disk = await device.mount();
      {
        using _file = Deno.openSync(disk.path);
        await assertRejects(() => disk.unmount({ timeout: 1 }), LoopBusyError);
      }
      await device.detach();
      runOk("losetup", own.path, ext4(scratch, "other.img"));
      using _other = mounted(own.path, directory(scratch));
      await disk.unmount({ timeout: 50 });
    }),
  );

  it(
    "releases its device at the last close after a lazy unmount",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const disk = await mount(image);
      Deno.writeTextFileSync(`${disk.path}/open`, "open");
      {
        await using _reader = await reader(`${disk.path}/open`);
        await disk.unmount({ lazy: true });
        assertEquals(scratch.devices(), [disk.source]);
      }
      assert(isSoon(() => scratch.devices().length === 0));
      await disk.unmount();
    }),
  );

  it(
    "stays mounted with ifUnused while a process has a file open",
    withScratch(async (scratch) => {
      await using disk = await mount(ext4(scratch));
      {
        using _file = Deno.createSync(`${disk.path}/open`);
        const error = await assertRejects(
          () => disk.unmount({ ifUnused: true }),
          LoopBusyError,
        );
        assertMatch(error.message, /this process has files open in it/);
      }
      {
        await using _reader = await reader(`${disk.path}/open`);
        await assertRejects(
          () => disk.unmount({ ifUnused: true }),
          LoopBusyError,
        );
      }
      assertEquals(Deno.statSync(`${disk.path}/open`).size, 0);
      const before = Deno.cwd();
      Deno.chdir(disk.path);
      using _undo = new Undo(() => Deno.chdir(before));
      await assertRejects(
        () => disk.unmount({ ifUnused: true }),
        LoopBusyError,
        "working directory",
      );
      Deno.chdir(before);
      assertEquals(Deno.statSync(`${disk.path}/open`).size, 0);
    }),
  );

  it(
    "unmounts lazily beside another unmount, without a false error",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      for (const delay of [0, 0, 1, 1, 2, 3, 5]) {
        const disk = await mount(image);
        Deno.writeFileSync(
          `${disk.path}/data`,
          new Uint8Array(MiB).fill(delay),
        );
        const first = disk.unmount();
        await new Promise((resolve) => setTimeout(resolve, delay));
        await Promise.all([first, disk.unmount({ lazy: true })]);
        await disk.unmount();
        assertEquals(scratch.devices(), []);
      }
      checkImage(image);
    }),
  );
});

describe("mount() on a target", onDevices, () => {
  it(
    "is seen by findmnt, with its options, until it is disposed of",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const target = directory(scratch);
      {
        await using disk = await mount(image, {
          target,
          noAtime: true,
          noExec: true,
          options: { data: "journal", lazytime: true },
        });
        assertEquals(disk.path, target);
        const [found] = mountsAt(target);
        assertEquals(found!.source, disk.source);
        assertMatch(
          found!.options,
          /^rw,nosuid,nodev,noexec,noatime,lazytime,.*data=journal/,
        );
        Deno.writeTextFileSync(`${target}/hello`, "there");
        assertEquals(
          JSON.stringify(disk),
          JSON.stringify({
            path: target,
            source: disk.source,
            type: "ext4",
            readOnly: false,
          }),
        );
        assertEquals(`${disk}`, target);
      }
      assertEquals(mountsAt(target), []);
      checkImage(image);
      assertEquals(contentOf(image, "hello"), "there");
    }),
  );

  it(
    "mounts on top of another mount, and unmounts only its own",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      using _below = mounted("-t", "tmpfs", "below", target);
      {
        await using _disk = await mount(ext4(scratch), { target });
        assertEquals(mountsAt(target).length, 2);
      }
      assertEquals(mountsAt(target).map(({ source }) => source), ["below"]);
    }),
  );

  it(
    "throws EBUSY if another file system is mounted over it",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      const disk = await mount(ext4(scratch), { target });
      {
        using _above = mounted("-t", "tmpfs", "above", target);
        const error = await assertRejects(
          () => disk.unmount({ timeout: 50 }),
          LoopError,
        );
        assertEquals(error.code, "EBUSY");
        assertMatch(error.message, /another file system is mounted over it/);
        assertEquals(mountsAt(target).length, 2);
      }
      await disk.unmount();
      assertEquals(mountsAt(target), []);
    }),
  );

  it(
    "resolves if another program has unmounted it",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      using _below = mounted("-t", "tmpfs", "below", target);
      const disk = await mount(ext4(scratch), { target });
      runOk("umount", target);
      await disk.unmount();
      assertEquals(mountsAt(target).map(({ source }) => source), ["below"]);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "unmounts a mount that another program has moved",
    withScratch(async (scratch) => {
      const base = directory(scratch, "base");
      using _base = mounted("-t", "tmpfs", "base", base);
      runOk("mount", "--make-private", base);
      const [from, to] = [`${base}/from`, `${base}/to`];
      Deno.mkdirSync(from);
      Deno.mkdirSync(to);
      const disk = await mount(ext4(scratch), { target: from });
      runOk("mount", "--move", from, to);
      await disk.unmount();
      assertEquals(mountsAt(to), []);
    }),
  );

  it(
    "stays mounted while it is busy, and names its users",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const target = directory(scratch);
      const disk = await mount(image, { target });
      {
        await using sleeper = sleepIn(target);
        const error = await assertRejects(
          () => disk.unmount({ timeout: 50 }),
          LoopBusyError,
        );
        assertEquals(error.holders, [{
          kind: "file",
          device: disk.source,
          pid: sleeper.pid,
          command: "sleep",
          path: target,
        }]);
        assertMatch(
          error.message,
          /in use by process \d+ \(sleep\): .*; it stays mounted$/,
        );
        assertEquals(mountsAt(target).length, 1);
        await assertRejects(
          () => disk.unmount({ ifUnused: true }),
          LoopBusyError,
        );
      }
      await disk.unmount();
      checkImage(image);
    }),
  );

  it(
    ...unless(
      lacking("mkfs.btrfs"),
      "unmounts a Btrfs of two devices, which has the name of the other, after it was moved",
    ),
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image(128 * MiB, "a"));
      await using b = await attach(scratch.image(128 * MiB, "b"));
      runOk("mkfs.btrfs", "-q", a.path, b.path);
      for (const device of [a, b]) {
        const target = `${directory(scratch, "before")}/mnt`;
        Deno.mkdirSync(target);
        await using disk = await device.mount({ target });
        Deno.renameSync(`${scratch.path}/before`, `${scratch.path}/after`);
        assertEquals(mountsAt(`${scratch.path}/after/mnt`).length, 1);
        await disk.unmount();
        assertEquals(mountsAt(`${scratch.path}/after/mnt`), []);
        Deno.removeSync(`${scratch.path}/after`, { recursive: true });
      }
    }),
  );

  it(
    "names loop devices and mounts in it",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      await using disk = await mount(ext4(scratch), { target });
      Deno.truncateSync(Deno.makeTempFileSync({ dir: target }), MiB);
      const [file] = [...Deno.readDirSync(target)]
        .filter(({ isFile }) => isFile).map(({ name }) => `${target}/${name}`);
      await using inner = await attach(file!);
      Deno.mkdirSync(`${target}/inner`);
      using _inner = mounted("-t", "tmpfs", "inner", `${target}/inner`);
      const error = await assertRejects(
        () => disk.unmount({ timeout: 50 }),
        LoopBusyError,
      );
      // This process has the file open, to keep it locked.
      assertEquals(error.holders.map(({ kind }) => kind), ["file", "block"]);
      assertEquals(error.holders[1], {
        kind: "block",
        device: disk.source,
        name: inner.loop.name,
      });
      assertMatch(error.message, /inner" is mounted in it/);
    }),
  );

  it(
    "is unmounted lazily while it is in use",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      const disk = await mount(ext4(scratch), { target });
      {
        await using _sleeper = sleepIn(target);
        await disk.unmount({ lazy: true });
        assertEquals(mountsAt(target), []);
        assertEquals(scratch.devices(), [disk.source]);
      }
      await disk.unmount();
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "stays mounted when disposal finds it busy, until it is unmounted",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      const disk = await mount(ext4(scratch), {
        target,
        attach: { detachTimeout: 20 },
      });
      {
        await using _sleeper = sleepIn(target);
        await assertRejects(() => disk[Symbol.asyncDispose](), LoopBusyError);
      }
      assertEquals(mountsAt(target).length, 1);
      runOk("umount", target);
      assert(isSoon(() => scratch.devices().length === 0));
    }),
  );

  it(
    "unmounts once for two concurrent calls of unmount()",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      const disk = await mount(ext4(scratch), { target });
      await Promise.all([disk.unmount(), disk.unmount()]);
      assertEquals(mountsAt(target), []);
    }),
  );

  it(
    ...unless(
      lackingThreads(),
      "leaves another mount alone if a directory of the path is exchanged during unmount()",
    ),
    withScratch(async (scratch) => {
      const [ours, theirs] = ["ours", "theirs"]
        .map((name) => `${directory(scratch, name)}/mnt`);
      Deno.mkdirSync(ours!);
      Deno.mkdirSync(theirs!);
      using _theirs = mounted("-t", "tmpfs", "theirs", theirs!);
      await using disk = await mount(ext4(scratch), { target: ours! });
      const place = mountOn(ours!, disk.source);
      let unmounting;
      {
        await using _threads = occupyThreads(scratch);
        unmounting = place.unmount(false);
        await moment();
        Deno.renameSync(`${scratch.path}/ours`, `${scratch.path}/moved`);
        Deno.symlinkSync("theirs", `${scratch.path}/ours`);
      }
      assertEquals(await unmounting, true);
      assertEquals(mountsAt(theirs!).length, 1);
      assertEquals(mountsAt(`${scratch.path}/moved/mnt`), []);
    }),
  );

  it(
    ...unless(
      lackingThreads(),
      "leaves the mount below it alone if it is unmounted twice at once",
    ),
    withScratch(async (scratch) => {
      const target = directory(scratch);
      using _below = mounted("-t", "tmpfs", "below", target);
      await using disk = await mount(ext4(scratch), { target });
      const places = [1, 2].map(() => mountOn(target, disk.source));
      let unmounting;
      {
        await using _threads = occupyThreads(scratch);
        unmounting = places.map((place) => place.unmount(false));
        await moment();
      }
      assertEquals(await Promise.all(unmounting), [true, true]);
      assertEquals(mountsAt(target).map(({ source }) => source), ["below"]);
    }),
  );

  it(
    ...unless(
      lackingUniqueIds(),
      "resolves if it is unmounted, and another mount of the device has its number",
    ),
    withScratch(async (scratch) => {
      const target = directory(scratch);
      const other = directory(scratch, "other");
      await using device = await attach(ext4(scratch));
      const disk = await device.mount({ target });
      const number = numberOf(target);
      runOk("umount", target);
      // Another process may take the number first.
      const isReused = isSoon(() => {
        runOk("mount", device.path, other);
        if (numberOf(other) === number) return true;
        runOk("umount", other);
        return false;
      });
      assert(isReused);
      using _other = new Undo(() => runOk("umount", other));
      await disk.unmount({ timeout: 50 });
      assertEquals(mountsAt(other).length, 1);
    }),
  );

  it(
    "lets an unmount that waits for another have its own timeout, signal and laziness",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      await using disk = await mount(ext4(scratch), { target });
      let first;
      {
        await using _sleeper = sleepIn(target);
        let isOver = false;
        first = disk.unmount().then(() => isOver = true);
        first.catch(() => {}); // what fails below comes first
        const error = await assertRejects(
          () => disk.unmount({ timeout: 1 }),
          LoopBusyError,
        );
        assertMatch(error.message, /an earlier unmount still waits$/);
        const controller = new AbortController();
        const { signal } = controller;
        const third = disk.unmount({ signal });
        controller.abort(new Error("enough"));
        await assertRejects(() => third, Error, "enough");
        await disk.unmount({ lazy: true });
        assertEquals(isOver, false);
        assertEquals(mountsAt(target), []);
      }
      await first;
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "takes relative paths, symbolic links and names that are not UTF-8",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const target = directory(scratch);
      const link = `${scratch.path}/link`;
      Deno.symlinkSync(target, link);
      {
        await using disk = await mount(image, { target: link });
        assertEquals(disk.path, link);
        assertEquals(mountsAt(target).length, 1);
        Deno.removeSync(link); // must not prevent unmounting
      }
      assertEquals(mountsAt(target), []);
      runOk("bash", "-c", `mkdir "$0"/$'odd\\xff'`, scratch.path);
      const odd = new URL(`file://${scratch.path}/odd%ff`);
      {
        await using _disk = await mount(image, { target: odd });
        assertEquals(
          run("bash", "-c", `mountpoint -q "$0"/$'odd\\xff'`, scratch.path)
            .code,
          0,
        );
      }
      assertEquals(mountinfo().includes(scratch.path), false);
    }),
  );
});

describe("mount() of partitions", onDevices, () => {
  it(
    "takes the only file system, a number, a name or the path of a partition",
    withScratch(async (scratch) => {
      const image = partitioned(scratch, [
        { name: "boot" },
        { name: "root", make: EXT4 },
        { name: "swap", make: "mkswap -q" },
        { name: "journal", make: `${EXT4} -O journal_dev` },
      ]);
      for (const partition of [undefined, 2, "root"]) {
        await using disk = await mount(image, { partition });
        assertMatch(disk.source, /^\/dev\/loop\d+p2$/);
      }
      await using device = await attach(image, { partscan: true });
      const [, root] = await device.partitions();
      await using disk = await mount(root!.path);
      assertEquals(disk.source, root!.path);
      const error = await assertRejects(
        () => mount(root!.path, { partition: 1 }),
        TypeError,
      );
      assertMatch(error.message, /is one already/);
    }),
  );

  it(
    "takes the sector size of the GPT, unless attach has a block size",
    withScratch(async (scratch) => {
      const image = await with4096(scratch);
      const target = directory(scratch);
      for (const options of [{}, { target }, { attach: { blockSize: 4096 } }]) {
        await using disk = await mount(image, options);
        assertMatch(disk.source, /^\/dev\/loop\d+p1$/);
        const [name] = /loop\d+/.exec(disk.source)!;
        assertEquals(attribute(name, "queue/logical_block_size"), "4096");
        Deno.writeTextFileSync(`${disk.path}/file`, "content");
      }
      const error = await rejection(image, { attach: { blockSize: 512 } });
      assertMatch(error.message, /the GPT is for sectors of 4096 bytes/);
    }),
  );

  it(
    "mounts several at once, each with its own content",
    withScratch(async (scratch) => {
      const image = partitioned(scratch, [
        { name: "a", make: EXT4 },
        { name: "b", make: EXT4 },
      ]);
      {
        await using device = await attach(image);
        await using a = await device.mount({ partition: "a" });
        await using b = await device.mount({ partition: "b" });
        Deno.writeTextFileSync(`${a.path}/who`, "a");
        Deno.writeTextFileSync(`${b.path}/who`, "b");
      }
      for (const partition of ["a", "b"]) {
        await using disk = await mount(image, { partition, readOnly: true });
        assertEquals(Deno.readTextFileSync(`${disk.path}/who`), partition);
      }
    }),
  );

  it(
    "lists the partitions when it cannot choose one",
    withScratch(async (scratch) => {
      const image = partitioned(scratch, [
        { name: "a", make: EXT4 },
        { name: "b", make: EXT4 },
        { name: "c" },
        { name: "c" },
      ]);
      const messages = [
        [
          {},
          /several file systems: 1 "a" \(ext4\), 2 "b" \(ext4\), .*; choose one with partition/,
        ],
        [{ partition: 9 }, /no partition 9: its partitions are 1 "a"/],
        [{ partition: "z" }, /no partition "z"/],
        [{ partition: "c" }, /several partitions have the name "c"/],
        [{ partition: 3 }, /no file system is recognized/],
      ] as const;
      for (const [options, pattern] of messages) {
        assertMatch((await rejection(image, options)).message, pattern);
      }
      assertEquals((await rejection(image, { partition: 9 })).code, "ENOENT");
    }),
  );

  it(
    "refuses a disk with a file system of its own beside those on its partitions",
    withScratch(async (scratch) => {
      const image = partitioned(scratch, [{ name: "a", make: EXT4 }]);
      writeBtrfs(image);
      const error = await rejection(image);
      assertMatch(
        error.message,
        /whole disk is recognized \(btrfs\), and so are partitions: 1 "a" \(ext4\); choose one/,
      );
      await using disk = await mount(image, { partition: 1 });
      assertEquals(disk.type, "ext4");
    }),
  );

  it(
    "refuses a disk with a file system of its own beside content that cannot be mounted",
    withScratch(async (scratch) => {
      const image = partitioned(scratch, [
        { name: "a", make: "mkswap -q" },
        { name: "b" },
      ]);
      writeBtrfs(image);
      const error = await rejection(image);
      assertEquals(error.code, "EINVAL");
      assertMatch(
        error.message,
        /recognized \(btrfs\), and so are partitions: 1 "a" \(swap\), 2 "b" \(nothing known\); wipefs/,
      );
      // Partitions without any content do not count: the table may be stale.
      runOk(
        "dd",
        `of=${image}`,
        "if=/dev/zero",
        ..."bs=1M seek=1 count=8 conv=notrunc status=none".split(" "),
      );
      assertEquals((await rejection(image)).operation, "fsconfig");
    }),
  );
});
describe("mount() of every type", onDevices, () => {
  const kinds: [type: string, make: string, megabytes: number][] = [
    ["ext2", "mkfs.ext2 -q -F", 8],
    ["ext3", "mkfs.ext3 -q -F", 8],
    ["ext4", "mkfs.ext4 -q -F", 8],
    ["xfs", "mkfs.xfs -q", 320],
    ["btrfs", "mkfs.btrfs -q", 128],
    ["vfat", "mkfs.vfat", 8],
    ["squashfs", "mksquashfs /etc/default @ -quiet -noappend", 0],
    ["erofs", "mkfs.erofs @ /etc/default", 0],
    ["iso9660", "genisoimage -quiet -R -o @ /etc/default", 0],
    ["f2fs", "mkfs.f2fs -q", 64],
  ];
  for (const [type, make, megabytes] of kinds) {
    const [program] = make.split(" ");
    const isThere = run("sh", "-c", `command -v ${program}`).code === 0;
    it(
      `mounts ${type}${isThere ? "" : " (skipped: not there)"}`,
      { ignore: !isThere },
      withScratch(async (scratch) => {
        const image = scratch.image(megabytes * MiB);
        const command = make.includes("@") ? make : `${make} @`;
        runOk("sh", "-c", `${command.replace("@", image)} >/dev/null 2>&1`);
        try {
          await using disk = await mount(image);
          const isWritable = !["squashfs", "erofs", "iso9660"].includes(type);
          assertEquals(disk.readOnly, !isWritable);
          if (isWritable) Deno.writeTextFileSync(`${disk.path}/hello`, type);
          else {
            const names = [...Deno.readDirSync(disk.path)].map(({ name }) =>
              name
            );
            assert(names.length > 0);
          }
        } catch (error) {
          if (!(error instanceof LoopError)) throw error;
          // Some kernels lack this file system.
          assertEquals(error.code, "ENODEV", error.message);
          assertMatch(error.message, /this kernel has no file system/);
          return;
        }
        await using disk = await mount(image, { readOnly: true });
        assertEquals(disk.readOnly, true);
        assertThrows(() => Deno.writeTextFileSync(`${disk.path}/no`, ""));
        const error = await assertRejects(
          () => mount(disk.source, { readOnly: false }),
          LoopError,
        );
        assertMatch(error.code, /^(EACCES|EROFS|EBUSY)$/);
      }),
    );
  }
});

describe("mount() for reading only", onDevices, () => {
  it(
    "attaches the file read-only too, unless attach says otherwise",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      for (const readOnly of [true, false]) {
        await using disk = await mount(image, {
          readOnly: true,
          attach: readOnly ? {} : { readOnly },
        });
        const name = disk.source.replace("/dev/", "");
        assertEquals(attribute(name, "ro"), readOnly ? "1" : "0");
        assertEquals(disk.readOnly, true);
      }
    }),
  );

  it(
    "is the default of a read-only device",
    withScratch(async (scratch) => {
      await using device = await attach(ext4(scratch), { readOnly: true });
      {
        await using disk = await device.mount();
        assertEquals(disk.readOnly, true);
      }
      const error = await assertRejects(
        () => device.mount({ readOnly: false }),
        LoopError,
      );
      assertEquals(error.code, "EACCES");
      assertMatch(error.message, /it can only be read: mount it read-only/);
    }),
  );

  it(
    "names noload where a journal would have to be replayed",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const dirty = `${scratch.path}/dirty.img`;
      {
        await using disk = await mount(image);
        Deno.writeTextFileSync(`${disk.path}/hello`, "hello");
        runOk("sync", "--file-system", disk.path);
        Deno.copyFileSync(image, dirty);
      }
      const before = Deno.readFileSync(dirty);
      let error = await rejection(dirty, { readOnly: true });
      // A failure that takes long, as on a busy machine, is not repeated for its number.
      for (let tries = 0; error.code === "EINVAL" && tries < 20; tries++) {
        error = await rejection(dirty, { readOnly: true });
      }
      assertEquals(error.code, "EROFS");
      assertMatch(error.message, /option noload mounts it as it is/);
      {
        await using disk = await mount(dirty, {
          readOnly: true,
          options: { noload: true },
        });
        assertEquals(disk.readOnly, true);
      }
      assertEquals(Deno.readFileSync(dirty), before);
      // A writable mount replays the journal.
      await using disk = await mount(dirty);
      assertEquals(Deno.readTextFileSync(`${disk.path}/hello`), "hello");
    }),
  );

  it(
    "takes a descriptor that is open for reading",
    withScratch(async (scratch) => {
      using file = openFile(ext4(scratch), { readOnly: true });
      await using disk = await mount(file, { readOnly: true });
      assertEquals(disk.readOnly, true);
    }),
  );
});

describe("mount() of what cannot be mounted", onDevices, () => {
  const fillers: [what: string, make: string, message: RegExp][] = [
    ["nothing", "true", /no file system is recognized on it/],
    ["swap", "mkswap -q", /it is swap space, not a file system \(swap\)/],
    [
      "a suspended system",
      "printf S1SUSPEND | dd conv=notrunc status=none bs=1 seek=4086 of=",
      /it is the image of a suspended system.*\(swsuspend\)/,
    ],
    [
      "a journal",
      `${EXT4} -O journal_dev`,
      /it is the journal of another file system \(jbd\)/,
    ],
    [
      "LUKS",
      "printf 'LUKS\\xba\\xbe\\x00\\x01' | dd conv=notrunc status=none of=",
      /it is encrypted: cryptsetup opens it.*\(crypto_LUKS\)/,
    ],
    [
      "LVM2",
      "printf 'LABELONE\\x01\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\x20\\0\\0\\0LVM2 001' | dd conv=notrunc status=none bs=512 seek=1 of=",
      /it is a part of a volume group of LVM.*\(LVM2_member\)/,
    ],
  ];
  for (const [what, make, message] of fillers) {
    it(
      `names ${what}`,
      withScratch(async (scratch) => {
        const image = scratch.image(4 * MiB);
        runOk("bash", "-c", `${make}${make.endsWith("=") ? "" : " "}${image}`);
        const error = await rejection(image);
        assertEquals(error.code, "EINVAL");
        assertMatch(error.message, message);
      }),
    );
  }

  it(
    ...unless(
      run("sh", "-c", "command -v mdadm").code === 0
        ? undefined
        : "mdadm is not installed",
      "names the RAID",
    ),
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      const superblock = new Uint8Array(4096);
      superblock.set([0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
      const file = Deno.openSync(image, { write: true });
      file.seekSync(4096, Deno.SeekMode.Start);
      file.writeSync(superblock);
      file.close();
      assertEquals((await rejection(image)).code, "EINVAL");
    }),
  );

  it(
    "quotes the kernel's message about a damaged superblock",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const file = Deno.openSync(image, { write: true });
      file.seekSync(1024 + 4, Deno.SeekMode.Start); // the number of blocks
      file.writeSync(new Uint8Array([0xff, 0xff, 0xff, 0x7f]));
      file.close();
      const error = await rejection(image);
      assertEquals(error.operation, "fsconfig");
      assertMatch(error.code, /^(EINVAL|EBADMSG|EUCLEAN)$/);
      assertMatch(error.message, /^Cannot mount "\/dev\/loop\d+" as ext4: /);
    }),
  );

  it(
    "refuses types, options and targets that do not exist",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const cases: [MountOptions, code: string, operation: string, RegExp][] = [
        [{ type: "nosuch" }, "ENODEV", "fsopen", /no file system nosuch/],
        [{ type: "tmpfs" }, "EINVAL", "fsopen", /has no device/],
        [{ type: "fuse.x" }, "EINVAL", "fsopen", /has no device/],
        [{ options: { foo: true } }, "EINVAL", "fsconfig", /foo|an option/],
        [{ options: { data: "x" } }, "EINVAL", "fsconfig", /data|an option/],
        [{ target: "/nowhere/at/all" }, "ENOENT", "open", /must exist/],
        [{ target: image }, "ENOTDIR", "open", /not a directory/],
        [{ partition: 1 }, "ENOENT", "mount", /it has no partitions/],
      ];
      for (const [options, code, operation, message] of cases) {
        const error = await rejection(image, options);
        assertEquals([error.code, error.operation], [code, operation]);
        assertMatch(error.message, message);
        assertEquals(scratch.devices(), []);
      }
      assertEquals((await rejection(`${scratch.path}/none`)).code, "ENOENT");
      assertEquals((await rejection(scratch.path)).code, "EISDIR");
    }),
  );

  it(
    "refuses bad arguments before any system call",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      await using device = await attach(image);
      type Options = Parameters<typeof mount>[1];
      const wrong: [unknown, typeof TypeError | typeof RangeError][] = [
        [{ readonly: true }, TypeError],
        [{ readOnly: 1 }, TypeError],
        [{ noDev: "yes" }, TypeError],
        [{ partition: 0 }, RangeError],
        [{ partition: 1.5 }, RangeError],
        [{ partition: "" }, RangeError],
        [{ partition: true }, TypeError],
        [{ type: "" }, RangeError],
        [{ type: "../x" }, RangeError],
        [{ type: 4 }, TypeError],
        [{ options: "noload" }, TypeError],
        [{ options: new Map([["noload", true]]) }, TypeError],
        [{ options: ["noload"] }, TypeError],
        [{ options: { noload: false } }, TypeError],
        [{ options: { ro: true } }, TypeError],
        [{ options: { nosuid: true } }, TypeError],
        [{ options: { source: "/dev/sda" } }, TypeError],
        [{ options: { "a=b": true } }, RangeError],
        [{ options: { data: "\0" } }, TypeError],
        [{ options: { data: "x".repeat(300) } }, RangeError],
        [{ target: 5 }, TypeError],
        [{ target: "a\0b" }, TypeError],
        [{ signal: {} }, TypeError],
        [{ attach: {} }, TypeError],
      ];
      for (const [options, error] of wrong) {
        await assertRejects(() => mount(device, options as Options), error);
      }
      await assertRejects(() => mount(device.path, { attach: {} }), TypeError);
      // A missing file would be an error of a system call.
      const bad: [unknown, typeof TypeError | typeof RangeError][] = [
        [null, TypeError],
        [5, TypeError],
        [{ nonsense: 1 }, TypeError],
        [{ offset: -1 }, RangeError],
      ];
      for (const [attach, error] of bad) {
        await assertRejects(
          () => mount("/nowhere", { attach } as Options),
          error,
        );
      }
      assertThrows(
        () => new Mount({} as ConstructorParameters<typeof Mount>[0]),
        TypeError,
      );
      await device.detach();
      const error = await assertRejects(() => device.mount(), LoopError);
      assertEquals(error.code, "EBADF");
    }),
  );

  it(
    "rejects with the reason of an abort, and leaves no mount or device",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      const reason = new Error("enough");
      await assertRejects(
        () => mount(image, { signal: AbortSignal.abort(reason) }),
        Error,
        "enough",
      );
      const target = directory(scratch);
      for (let delay = 0; delay < 4; delay++) {
        const controller = new AbortController();
        const timer = setTimeout(() => controller.abort(reason), delay / 2);
        const { signal } = controller;
        try {
          await using _disk = await mount(image, { signal, target });
        } catch (error) {
          assertEquals(error, reason);
        }
        clearTimeout(timer);
        assert(isSoon(() => scratch.devices().length === 0));
        assertEquals(mountinfo().includes(scratch.path), false);
      }
    }),
  );
});

describe("Mount.unmount()", onDevices, () => {
  it(
    "throws a write-back error once, after it has unmounted and detached",
    withScratch(async (scratch) => {
      const small = directory(scratch, "small");
      using _small = mounted("-t", "tmpfs", "-o", "size=4M", "small", small);
      const image = `${small}/disk.img`;
      Deno.writeFileSync(image, new Uint8Array());
      Deno.truncateSync(image, 64 * MiB);
      runOk("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image);
      const disk = await mount(image, { options: { errors: "continue" } });
      Deno.writeFileSync(`${disk.path}/large`, new Uint8Array(16 * MiB));
      const error = await assertRejects(() => disk.unmount(), LoopError);
      assertMatch(error.code, /^(EIO|ENOSPC)$/);
      assertMatch(error.message, /^Cannot write back/);
      await disk.unmount(); // the error is thrown only once
      const isFree = () =>
        !run("losetup", "-j", image).stdout.includes("disk.img");
      assert(isSoon(isFree));
    }),
  );

  it(
    "stays mounted after an abort during the search of ifUnused",
    withScratch(async (scratch) => {
      const target = directory(scratch);
      await using disk = await mount(ext4(scratch), { target });
      const reason = new Error("enough");
      // No search ends within some turns of the microtask queue.
      for (let turns = 0; turns < 32; turns += 4) {
        const controller = new AbortController();
        const { signal } = controller;
        const unmounting = disk.unmount({ ifUnused: true, signal })
          .then(() => undefined, (error) => error);
        for (let turn = 0; turn < turns; turn++) await undefined;
        controller.abort(reason);
        assertEquals(await unmounting, reason, `${turns}`);
        assert(mountinfo().includes(target));
      }
    }),
  );

  it(
    "writes all data back to the image, under load",
    withScratch(async (scratch) => {
      const image = ext4(scratch, "load.img", 64 * MiB);
      const content = new Uint8Array(24 * MiB);
      crypto.getRandomValues(content.subarray(0, 65536));
      const disk = await mount(image);
      await Deno.writeFile(`${disk.path}/large`, content);
      await disk.unmount();
      checkImage(image);
      const target = directory(scratch);
      using _mount = new Undo(() => runOk("umount", target));
      runOk("mount", "-o", "loop,ro", image, target);
      assertEquals(Deno.readFileSync(`${target}/large`), content);
    }),
  );
});

describe("mount() in other environments", onDevices, () => {
  const body = (image: string) => `
    await tell(async () => {
      await using disk = await loopdev.mount("${image}", { partition: "b" });
      return disk.source;
    });`;

  it(
    "creates private nodes if /dev has none",
    withScratch((scratch) => {
      const image = partitioned(scratch, [{ name: "a" }, {
        name: "b",
        make: EXT4,
      }]);
      const { stdout } = inNamespace(scratch, TMPFS_DEV, body(image));
      assertMatch(stdout, /^ok "\/run\/loopdev-[^/]+\/loop\d+p2"\n$/);
    }),
  );

  it(
    "names the missing capability, and leaves no device",
    withScratch((scratch) => {
      const image = ext4(scratch);
      const { stdout } = inNamespace(
        scratch,
        "true",
        `await tell(() => loopdev.mount("${image}"));`,
        { user: "setpriv --bounding-set -all,+dac_override,+mknod" },
      );
      assertMatch(
        stdout,
        /^LoopError EPERM Cannot mount .* needs CAP_SYS_ADMIN: run it as root/,
      );
    }),
  );
});
