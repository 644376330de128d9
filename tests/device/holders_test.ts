import {
  attach,
  describeHolder,
  detach,
  type DeviceRef,
  FileDescriptor,
  type Holder,
  holders,
  Loop,
  LoopBusyError,
  LoopError,
  openMemory,
  StaleDeviceError,
  UnexpectedDevice,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { EACCES } from "../../lib/sys/errno.ts";
import { closedFileSystemAt } from "../../lib/sys/stat.ts";
import {
  AT_FDCWD,
  cString,
  O_EXCL,
  O_PATH,
  openAt,
} from "../../lib/sys/libc.ts";
import {
  cli,
  isSoon,
  lacking,
  losetupDetach,
  mounted,
  noDiskSequence,
  onDevices,
  OwnDevice,
  run,
  runOk,
  Undo,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;
const MOD = new URL("../../mod.ts", import.meta.url).href;

/** Returns the holders of a device. */
async function found(device: DeviceRef): Promise<Holder[]> {
  return (await holders(device)).holders;
}

/** Returns the holders in words. */
async function describeAll(device: string): Promise<string[]> {
  return (await found(device)).map(describeHolder);
}

/** Removes processes that only examine all devices, as other tests do. */
function lasting(found: Holder[]): Holder[] {
  return found.filter(({ kind }) => kind !== "process");
}

/** A process that has started and done its work, and runs until this is disposed of. */
class Background implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #output: ReadableStreamDefaultReader<Uint8Array>;

  private constructor(script: string) {
    this.#child = new Deno.Command("bash", {
      args: ["-c", `${script}; echo; read`],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#output = this.#child.stdout.getReader();
  }

  static async start(script: string): Promise<Background> {
    const process = new Background(script);
    await process.#output.read();
    return process;
  }

  get pid(): number {
    return this.#child.pid;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child.stdin.close();
    await this.#child.status;
    await this.#output.cancel();
  }
}

const noPython = lacking("python3");

/** A background process that runs a program in Python. */
const Python = {
  start(program: string): Promise<Background> {
    return Background.start(
      `exec python3 -c '
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)${program}
print(flush=True)
os.read(0, 1)'`,
    );
  },
};

describe("describeHolder()", () => {
  const pid = 42;
  it("is one line whatever the names contain", () => {
    const odd = "a\n\x1b[2J\u202e";
    const holders: Holder[] = [
      { kind: "mount", device: "/dev/loop3", target: odd },
      { kind: "file", device: "/dev/loop3", pid, command: odd, path: odd },
      { kind: "block", device: "/dev/loop3", name: "dm-0", label: odd },
      { kind: "process", device: "/dev/loop3", pid, command: odd, fd: -1 },
      { kind: "process", device: "/dev/loop3", pid, command: odd, fd: 3 },
    ];
    for (const holder of holders) {
      // deno-lint-ignore no-control-regex
      assertMatch(describeHolder(holder), /^[^\x00-\x1f\u202e]*$/);
    }
  });

  it("names a partition, but not a disk", () => {
    const target = "/mnt";
    assertEquals(
      ["/dev/loop3", "/dev/loop3p1"].map((device) =>
        describeHolder({ kind: "mount", device, target })
      ),
      ["mounted on /mnt", "/dev/loop3p1 mounted on /mnt"],
    );
  });
});

describe("holders()", onDevices, () => {
  it(
    "finds no holders of an unused device",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      assertEquals(lasting(await found(own.path)), []);
      runOk("losetup", own.path, scratch.image());
      assertEquals(lasting(await found(own.minor)), []);
    }),
  );

  it(
    "finds processes, including this one, through any node",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      const fd = a.loop.fd;
      runOk("cp", "-a", a.path, `${scratch.path}/node`);
      await using process = await Background.start(
        `exec 9<'${scratch.path}/node'`,
      );
      const all = await found(a);
      assertEquals(all, all.filter(({ kind }) => kind === "process"));
      const mine = all.find((holder) =>
        holder.kind === "process" && holder.pid === Deno.pid
      );
      assert(mine?.kind === "process");
      assertEquals([mine.device, mine.fd], [a.path, fd]);
      const other = all.find((holder) =>
        holder.kind === "process" && holder.pid === process.pid
      );
      assert(other?.kind === "process");
      assertEquals([other.fd, other.command], [9, "bash"]);
      const words = await describeAll(a.path);
      assert(words.includes(`open in this process (descriptor ${fd})`));
      assert(words.includes(`open in process ${process.pid} (bash)`));
    }),
  );

  it(
    "finds mounts, even in other mount namespaces",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", image);
      const here = `${scratch.path}/a mount`;
      const there = `${scratch.path}/there`;
      Deno.mkdirSync(here);
      Deno.mkdirSync(there);
      const device = runOk("losetup", "--find", "--show", image);
      using mount = mounted(device, here);
      {
        await using process = await Background.start(
          `exec unshare --mount --propagation private bash -c "mount ${device} '${there}'; echo; read"`,
        );
        assertEquals(lasting(await found(device)), [
          { kind: "mount", device, target: here },
          { kind: "mount", device, target: there, pid: process.pid },
        ]);
        assert(
          (await describeAll(device)).includes(
            `mounted on ${there}, as process ${process.pid} sees it`,
          ),
        );
        assert((await describeAll(device)).includes(`mounted on ${here}`));
      }
      mount[Symbol.dispose]();
      assertEquals(lasting(await found(device)), []);
      await detach(device);
    }),
  );

  it(
    "finds swap, and other loop devices on top",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkswap", image);
      const device = runOk("losetup", "--find", "--show", image);
      runOk("swapon", device);
      using swap = new Undo(() => runOk("swapoff", device));
      assertEquals(lasting(await found(device)), [{ kind: "swap", device }]);
      swap[Symbol.dispose]();
      const upper = runOk("losetup", "--find", "--show", device);
      const name = upper.replace("/dev/", "");
      assertEquals(lasting(await found(device)), [{
        kind: "block",
        device,
        name,
      }]);
      assert((await describeAll(device)).includes(`used by ${name}`));
      await detach(upper);
      await detach(device);
    }),
  );

  it(
    "finds the holder of a partition",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      await using a = await attach(scratch.image(), {
        minor: own.minor,
        partscan: true,
      });
      runOk("addpart", own.path, "1", "8", "8");
      using partition = await Deno.open(`${own.path}p1`);
      assert(partition);
      const holder = (await found(own.path)).find((holder) =>
        holder.kind === "process" && holder.device !== own.path &&
        holder.pid === Deno.pid
      );
      assert(holder?.kind === "process");
      assertEquals(holder.device, `${own.path}p1`);
      assertMatch(
        describeHolder(holder),
        new RegExp(`^${own.path}p1 open in this process`),
      );
      partition.close();
      await a.detach();
    }),
  );

  it(
    "finds processes that use a lazily unmounted file system",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", image);
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      const device = runOk("losetup", "--find", "--show", image);
      runOk("mount", device, mnt);
      runOk("cp", "/bin/sleep", `${mnt}/program`);
      const ways: Record<string, string> = {
        descriptor: `exec 9<'${mnt}/program'`,
        "working directory": `cd '${mnt}'`,
        mapping:
          `coproc '${mnt}/program' 60; trap "kill $COPROC_PID" EXIT; sleep 0.2`,
      };
      await using stack = new AsyncDisposableStack();
      const processes: Background[] = [];
      for (const way of Object.values(ways)) {
        processes.push(stack.use(await Background.start(way)));
      }
      assertEquals(
        (await found(device)).filter(({ kind }) => kind === "file"),
        [],
        "while it is mounted the mount says all",
      );
      runOk("umount", "--lazy", mnt);
      const files = (await found(device)).filter(({ kind }) => kind === "file");
      for (const [index, way] of Object.keys(ways).entries()) {
        const { pid } = processes[index]!;
        const holder = files.find((file) =>
          file.kind === "file" &&
          (file.pid === pid ||
            (way === "mapping" && file.command === "program"))
        );
        assert(holder?.kind === "file", way);
        assertEquals(holder.device, device);
        assertMatch(
          describeHolder(holder),
          /^not mounted on any directory, but in use by process \d+ \((bash|program)\): \//,
        );
      }
      await stack.disposeAsync();
      assert(isSoon(() => run("losetup", "-d", device).code === 0));
    }),
  );

  it(
    ...unless(
      noPython,
      "finds who has it mapped, and lives on without its first thread",
    ),
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      await using mapped = await Python.start(`
fd = os.open("${a.path}", os.O_RDWR)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
assert libc.mmap(None, 4096, 1, 1, fd, 0) not in (None, 2**64 - 1)
os.close(fd)`);
      await using threaded = await Python.start(`
fd = os.open("${a.path}", os.O_RDONLY)
exit = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
threading.Thread(target=os.read, args=(0, 1)).start()
print(flush=True)
libc.syscall(exit, 0)`);
      assert(isSoon(() =>
        /\(python3?[^)]*\) Z/.test(
          Deno.readTextFileSync(`/proc/${threaded.pid}/stat`),
        )
      ));
      const all = await found(a);
      const of = (process: { pid: number }): Holder[] =>
        all.filter((holder) =>
          holder.kind === "process" && holder.pid === process.pid
        );
      const [mapping, ...others] = of(mapped);
      assert(mapping?.kind === "process" && others.length === 0);
      assertEquals([mapping.device, mapping.fd], [a.path, -1]);
      assertMatch(
        describeHolder(mapping),
        new RegExp(`^mapped by process ${mapped.pid} \\(python`),
      );
      assertEquals(of(threaded).length, 1);
    }),
  );

  it(
    ...unless(
      noPython,
      "finds descriptors that only one thread has, and tells two files of one path apart",
    ),
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      await using threaded = await Python.start(`
done = threading.Event()
def work():
  assert libc.unshare(0x400) == 0 # CLONE_FILES
  os.open("${a.path}", os.O_RDONLY)
  done.set()
  os.read(0, 1)
threading.Thread(target=work, daemon=True).start()
done.wait()`);
      const path = `${scratch.path}/node`;
      await using named = await Python.start(`
os.open("${path}", os.O_RDONLY | os.O_CREAT)
assert libc.unshare(0x20000) == 0 # CLONE_NEWNS
assert libc.mount(None, b"/", None, 0x44000, None) == 0 # MS_REC | MS_PRIVATE
assert libc.mount(b"${a.path}", b"${path}", None, 4096, None) == 0 # MS_BIND
os.open("${path}", os.O_RDONLY)`);
      const all = await found(a);
      for (const { pid } of [threaded, named]) {
        const own = all.filter((holder) =>
          holder.kind === "process" && holder.pid === pid
        );
        assertEquals(own.length, 1);
      }
    }),
  );

  it(
    ...unless(
      noPython,
      "finds descriptors of files whose paths are too long to be read",
    ),
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      await using process = await Python.start(`
os.chdir("${scratch.path}")
for _ in range(20):
  os.mkdir("d" * 255)
  os.chdir("d" * 255)
os.mknod("node", 0o60600, os.stat("${a.path}").st_rdev)
os.open("node", os.O_RDONLY)
os.chdir("/")`);
      const own = (await found(a)).filter((holder) =>
        holder.kind === "process" && holder.pid === process.pid
      );
      assertEquals(own.length, 1);
    }),
  );

  it(
    ...unless(
      lacking("strace"),
      "does not open other devices with files in memory",
    ),
    withScratch(async (scratch) => {
      await using own = await attach(scratch.image());
      using memory = openMemory(MiB);
      await using other = await attach(memory);
      const trace = `${scratch.path}/trace`;
      runOk(
        "strace",
        "--follow-forks",
        "--quiet=all",
        `--output=${trace}`,
        "--trace=openat,openat2",
        Deno.execPath(),
        "eval",
        "--quiet",
        `const { holders } = await import("${MOD}");
         await holders("${own.path}");`,
      );
      const opened = Deno.readTextFileSync(trace).split("\n");
      const examined = `/sys/devices/virtual/block/${other.loop.name}/`;
      assert(opened.some((line) => line.includes(examined)), "it was not seen");
      const node = `"${other.path}"`;
      assertEquals(opened.filter((line) => line.includes(node)), []);
    }),
  );

  it(
    "is incomplete if the time is up while mappings are still being read",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      // Without kernel threads, which have no mappings, a reader is always left when the
      // search waits for all of them.
      const printed = runOk(
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        Deno.execPath(),
        "eval",
        "--quiet",
        `const { holders } = await import("${MOD}");
         console.log((await holders("${a.path}")).complete);
         const { all } = Promise;
         const { now } = performance;
         Promise.all = (promises) => {
           performance.now = () => now.call(performance) + 60_000;
           return all.call(Promise, promises);
         };
         console.log((await holders("${a.path}")).complete);`,
      );
      assertEquals(printed, "true\nfalse");
    }),
  );

  it(
    "does not count an O_PATH descriptor as a holder",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      runOk("mount", "-t", "tmpfs", a.path, mnt);
      using _mount = new Undo(() => runOk("umount", mnt));
      using _path = new FileDescriptor(
        openAt(AT_FDCWD, cString(a.path), O_PATH),
      );
      assertEquals(lasting(await found(a)), []);
      const own = (await found(a)).filter((holder) =>
        holder.kind === "process" && holder.pid === Deno.pid
      );
      assertEquals(own.length, 1, "a descriptor for the path alone is none");
    }),
  );

  it(
    ...unless(
      lacking("mkfs.btrfs"),
      "names all devices of a Btrfs, mounted through any node",
    ),
    withScratch(async (scratch) => {
      const attached = ["a", "b"].map((name) =>
        runOk("losetup", "--find", "--show", scratch.image(128 * MiB, name))
      );
      using _devices = new Undo(() =>
        attached.forEach((device) => losetupDetach(device))
      );
      runOk("mkfs.btrfs", "-q", ...attached);
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      for (const isElsewhere of [false, true]) {
        const nodes = attached.map((device, index) => {
          if (!isElsewhere) return device;
          const node = `${scratch.path}/node${index}`;
          runOk("cp", "-a", device, node);
          return node;
        });
        runOk("mount", "-o", `device=${nodes[1]}`, nodes[0]!, mnt);
        for (const device of attached) {
          assertEquals(lasting(await found(device)), [
            { kind: "mount", device, target: mnt },
          ], `${isElsewhere}`);
        }
        {
          await using _process = await Background.start(`cd '${mnt}'`);
          runOk("umount", "--lazy", mnt);
          for (const device of attached) {
            const [holder, ...others] = lasting(await found(device));
            assertEquals(others, []);
            assert(holder?.kind === "block" && holder.name === "btrfs");
            assertMatch(
              describeHolder(holder),
              /^used by btrfs \([-0-9a-f]+\)$/,
            );
          }
        }
        assert(isSoon(() =>
          attached.every((device) => {
            const fd = openAt(AT_FDCWD, cString(device), O_EXCL);
            if (fd >= 0) new FileDescriptor(fd).close();
            return fd >= 0;
          })
        ));
      }
    }),
  );

  it(
    ...unless(
      run("dmsetup", "version").code === 0
        ? undefined
        : "there is no device-mapper",
      "names the mapping of device-mapper",
    ),
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      const label = `loopdev-test-${crypto.randomUUID()}`;
      runOk(
        "dmsetup",
        "create",
        label,
        "--noudevsync",
        "--table",
        `0 8 linear ${a.path} 0`,
      );
      using mapping = new Undo(() =>
        runOk("dmsetup", "remove", "--retry", "--noudevsync", label)
      );
      const [holder, ...others] = lasting(await found(a));
      assertEquals(others, []);
      assert(holder?.kind === "block");
      assertEquals([holder.device, holder.label], [a.path, label]);
      assertEquals(describeHolder(holder), `used by ${holder.name} (${label})`);
      mapping[Symbol.dispose]();
    }),
  );

  it(
    "refuses other files, and missing ones",
    withScratch(async (scratch) => {
      await assertRejects(() => holders("/dev/null"), UnexpectedDevice);
      await assertRejects(() => holders(-1), RangeError);
      await assertRejects(() => holders(`${scratch.path}/none`), LoopError);
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
        () => holders({ minor, diskSequence }),
        StaleDeviceError,
      );
    }),
  );
});

describe("closedFileSystemAt()", onDevices, () => {
  it("does not take a file that cannot be examined for one in a closed FUSE mount", () => {
    for (const path of ["/", "/dev/null"]) {
      assertEquals(closedFileSystemAt(AT_FDCWD, cString(path)), -EACCES);
    }
  });
});

describe("LoopBusyError", onDevices, () => {
  it(
    "names the holders of the device",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", image);
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      const a = await attach(image);
      const { path } = a;
      using mount = mounted(path, mnt);
      const error = await assertRejects(
        () => a.detach({ timeout: 0 }),
        LoopBusyError,
      );
      assertEquals(lasting(error.holders), [
        { kind: "mount", device: path, target: mnt },
      ]);
      assertMatch(error.message, new RegExp(`mounted on ${mnt};.* the kernel`));
      const shown = cli("show", path);
      assertMatch(shown.stdout, new RegExp(`holders +mounted on ${mnt}`));
      const refused = cli("detach", path, "--timeout", "10ms");
      assertEquals(refused.code, 1);
      assertMatch(refused.stderr, new RegExp(`mounted on ${mnt}`));
      mount[Symbol.dispose](); // the kernel detaches
      assert(isSoon(() => scratch.devices().length === 0));
      await a.detach();
    }),
  );

  it("names up to ten holders", async () => {
    using memory = openMemory(MiB);
    const a = await attach(memory);
    {
      using stack = new DisposableStack();
      for (let count = 0; count < 12; count++) stack.use(Loop.open(a.path));
      const error = await assertRejects(
        () => a.detach({ timeout: 0 }),
        LoopBusyError,
      );
      assert(error.holders.length >= 12);
      assertEquals(error.message.match(/open in /g)?.length, 10);
      assertMatch(error.message, /; and \d+ more; /);
    }
    await a.detach();
  });

  it("reports that some processes could not be checked", async () => {
    // Without root, nothing can be attached, but holders can be searched for.
    const { code, stdout } = run(
      "bash",
      "-c",
      `setpriv --reuid 65534 --clear-groups bash -c 'ls /proc/1/fd' 2>&1; true`,
    );
    assertEquals(code, 0);
    assertMatch(stdout, /denied/);
    const { findHolders } = await import("../../lib/kernel/holder_search.ts");
    using own = new OwnDevice();
    const { complete } = await findHolders(own.minor);
    assertEquals(typeof complete, "boolean");
    using loop = new Loop(own.minor);
    assert((await findHolders(own.minor)).holders.length >= 1, loop.path);
  });
});
