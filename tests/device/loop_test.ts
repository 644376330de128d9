import {
  Loop,
  LOOP_SET_STATUS64,
  LoopError,
  openDirectory,
  openFile,
  openMemory,
  UnexpectedDevice,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertGreater,
  assertMatch,
  assertNotEquals,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { ioctlPointer } from "../../lib/sys/libc.ts";
import { script } from "./namespace.ts";
import { Racer } from "./racer.ts";
import {
  attribute,
  diskSequenceOf,
  holdExclusively,
  isSoon,
  noDiskSequence,
  onDevices,
  OwnDevice,
  run,
  runOk,
  type Scratch,
  times,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

function code(call: () => unknown): string {
  return assertThrows(call, LoopError).code;
}

/** Runs a script that may hang, and returns its output up to the deadline. */
function runFor(seconds: number, scratch: Scratch, body: string): string {
  const path = `${scratch.path}/script.ts`;
  Deno.writeTextFileSync(path, script(body));
  const { code, stdout, stderr } = run(
    "timeout",
    ...`-s KILL ${seconds} ${Deno.execPath()} run -q --no-check --allow-ffi`
      .split(" "),
    path,
  );
  assertEquals(code, 0, `${code} ${stdout} ${stderr}`);
  return stdout;
}

describe("new Loop()", onDevices, () => {
  it(
    "opens /dev/loopN",
    withScratch(() => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      assertEquals(loop.minor, own.minor);
      assertEquals(loop.name, own.name);
      assertEquals(loop.path, own.path);
      assertEquals(
        Deno.readLinkSync(`/proc/self/fd/${loop.fd}`),
        own.path,
      );
      const flags = Deno.readTextFileSync(`/proc/self/fdinfo/${loop.fd}`);
      assertMatch(flags, /flags:\s+02\d*00002\n/); // O_CLOEXEC, O_RDWR
    }),
  );

  it(
    "opens the node in dirFd",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using directory = openDirectory(scratch.path);
      runOk("mknod", `${scratch.path}/${own.name}`, "b", "7", `${own.minor}`);
      using loop = new Loop(own.minor, { dirFd: directory.fd });
      assertEquals(loop.path, `${scratch.path}/${own.name}`);
      assertEquals(loop.getSize(), 0);
    }),
  );

  it(
    "treats 0 as a descriptor",
    withScratch((scratch) => {
      using own = new OwnDevice();
      // Descriptor 0 of the child process is a directory without nodes.
      const script = `
        import { Loop } from "${new URL("../../mod.ts", import.meta.url)}";
        try { new Loop(${own.minor}, { dirFd: 0 }); } catch (error) {
          console.log(error.code, error.path);
        }`;
      Deno.writeTextFileSync(`${scratch.path}/t.ts`, script);
      const { stdout } = run(
        "bash",
        "-c",
        `'${Deno.execPath()}' run -q --no-check --allow-ffi '${scratch.path}/t.ts' < '${scratch.path}'`,
      );
      assertEquals(stdout.trim(), `ENOENT ${scratch.path}/${own.name}`);
    }),
  );

  it(
    "refuses a node of another device, without opening it",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using directory = openDirectory(scratch.path);
      const node = `${scratch.path}/${own.name}`;
      const refused = (mode: number, hint: string) => {
        const error = assertThrows(
          () => new Loop(own.minor, { dirFd: directory.fd }),
          UnexpectedDevice,
          hint,
        );
        assertEquals(error.code, "ENODEV");
        assertEquals(error.path, node);
        assertEquals(error.expectedMinor, own.minor);
        assertEquals(error.mode & 0o170000, mode);
        return error.rdev;
      };
      Deno.writeTextFileSync(node, "");
      assertEquals(refused(0o100000, "regular file"), 0);
      Deno.removeSync(node);
      runOk("mkfifo", node);
      refused(0o010000, "FIFO"); // must not hang
      Deno.removeSync(node);
      Deno.mkdirSync(node);
      refused(0o040000, "directory");
      Deno.removeSync(node);
      runOk("mknod", node, "b", "7", `${(own.minor + 1) % 2 ** 20}`);
      assertNotEquals(refused(0o060000, "another device"), 0);
      Deno.removeSync(node);
      runOk("mknod", node, "c", "7", `${own.minor}`);
      refused(0o020000, "character device");
    }),
  );

  it(
    "does not add a removed device by opening its leftover node",
    withScratch((scratch) => {
      using directory = openDirectory(scratch.path);
      let minor;
      {
        using own = new OwnDevice();
        minor = own.minor;
        using loop = new Loop(minor);
        loop.mknod({ dirFd: directory.fd });
      }
      const error = assertThrows(
        () => new Loop(minor, { dirFd: directory.fd }),
        UnexpectedDevice,
        "the kernel has no",
      );
      assertEquals(error.expectedMinor, minor);
      assertThrows(() => Deno.statSync(`/sys/block/loop${minor}`));
      assertEquals(code(() => new Loop(minor)), "ENOENT");
      assertThrows(
        () => Loop.open(`${scratch.path}/loop${minor}`),
        UnexpectedDevice,
      );
      assertThrows(() => Deno.statSync(`/sys/block/loop${minor}`));
    }),
  );

  it(
    "throws for a descriptor that is not a directory",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using file = openFile(scratch.image());
      assertEquals(
        code(() => new Loop(own.minor, { dirFd: file.fd })),
        "ENOTDIR",
      );
      assertEquals(code(() => new Loop(own.minor, { dirFd: 9999 })), "EBADF");
    }),
  );
});

describe(
  "new Loop(), Loop.open(), LoopControl and openFile()",
  onDevices,
  () => {
    it(
      "do not hang if a FIFO replaces the examined file",
      withScratch(async (scratch) => {
        using own = new OwnDevice();
        const directory = Racer.directory(scratch);
        const places = {
          [own.name]: ["b", "7", `${own.minor}`],
          "loop-control": ["c", "10", "237"],
        };
        for (const [name, node] of Object.entries(places)) {
          runOk("mknod", `${directory}/${name}`, ...node);
          await using _racer = Racer.swappingFifo(directory, name);
          const stdout = runFor(
            120,
            scratch,
            `const { LoopError, openDirectory, openFile } = loopdev;
           const directory = openDirectory("${directory}");
           const path = "${directory}/${name}";
           const calls = "${name}" === "loop-control"
             ? [() => {
               const control = new LoopControl({ dirFd: directory.fd });
               control.getUnbound(); // ENOTTY if it is the FIFO
               return control;
             }]
             : [
               () => new Loop(${own.minor}, { dirFd: directory.fd, readOnly: true }),
               () => Loop.open(path, { readOnly: true }),
               () => openFile(path, { readOnly: true }),
             ];
           let count = 0;
           for (let round = 0; round < ${times(20000)}; round++) {
             try {
               calls[round % calls.length]().close();
               count++;
             } catch (error) {
               if (!(error instanceof LoopError) || error.code === "ENOTTY") throw error;
             }
           }
           console.log(count > 0);`,
          );
          assertEquals(stdout, "true\n");
        }
      }),
    );
  },
);

describe("Loop.open()", onDevices, () => {
  it(
    "accepts a name, a path, and any path to the node",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const link = `${scratch.path}/a link`;
      Deno.symlinkSync(own.path, link);
      runOk("mknod", `${scratch.path}/disk`, "b", "7", `${own.minor}`);
      for (const path of [own.name, own.path, link, `${scratch.path}/disk`]) {
        using loop = Loop.open(path);
        assertEquals(loop.minor, own.minor);
        assertEquals(loop.name, own.name);
        assertEquals(loop.path, path === own.name ? own.path : path);
      }
    }),
  );

  it(
    "refuses other files, and names the disk of a partition",
    withScratch((scratch) => {
      for (const path of ["/dev/null", "/etc/passwd", scratch.path]) {
        const error = assertThrows(() => Loop.open(path), UnexpectedDevice);
        assertEquals(error.expectedMinor, -1);
      }
      assertEquals(code(() => Loop.open(`${scratch.path}/none`)), "ENOENT");
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true, partscan: true });
      runOk("addpart", own.path, "1", "8", "8");
      const error = assertThrows(
        () => Loop.open(`${own.path}p1`),
        UnexpectedDevice,
        own.path,
      );
      assertEquals(error.path, `${own.path}p1`);
    }),
  );
});

describe("Loop.setFd()", onDevices, () => {
  it(
    "binds a file, and clearFd() with close() unbinds it",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = scratch.image(MiB, "näme with\nnewline");
      {
        using file = openFile(path);
        using loop = new Loop(own.minor);
        loop.setFd(file.fd);
        assertEquals(loop.getSize(), MiB);
        assertEquals(attribute(own.name, "loop/backing_file"), path);
        assertEquals(code(() => loop.setFd(file.fd)), "EBUSY");
        loop.clearFd();
        assert(own.isBound, "the kernel detaches at the last close");
      }
      assert(own.isFree);
    }),
  );

  it(
    "refuses a file that cannot back a device, and leaves the device free",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using directory = openDirectory(scratch.path);
      assertEquals(code(() => loop.setFd(directory.fd)), "EISDIR");
      assertEquals(code(() => loop.setFd(9999)), "EBADF");
      assertEquals(code(() => loop.setFd(loop.fd)), "EBADF"); // the device itself
      using other = new OwnDevice();
      using unbound = new Loop(other.minor);
      assertEquals(code(() => loop.setFd(unbound.fd)), "EINVAL");
      for (const bind of [loop.setFd, loop.configure]) {
        assertThrows(
          () => bind.call(loop, unbound.fd),
          LoopError,
          "iso9660, only to a device opened readOnly",
        );
      }
      assertThrows(() => loop.setFd(-1), RangeError);
      assertThrows(() => loop.setFd(1.5), RangeError);
      assert(own.isFree);
    }),
  );

  it(
    "refuses a cycle of two devices",
    withScratch((scratch) => {
      using a = new OwnDevice();
      using b = new OwnDevice();
      using lower = new Loop(a.minor);
      using upper = new Loop(b.minor);
      using file = openFile(scratch.image());
      lower.configure(file.fd, { autoclear: true, readOnly: true });
      upper.configure(lower.fd, { autoclear: true, readOnly: true });
      assertEquals(code(() => lower.changeFd(upper.fd)), "EBADF");
    }),
  );
});

describe("Loop.clearFd()", onDevices, () => {
  it(
    "loses no data written through another descriptor",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      for (let round = 1; round <= 20; round++) {
        using file = openFile(path);
        using loop = new Loop(own.minor);
        loop.setFd(file.fd);
        const bytes = new Uint8Array(4096).fill(round);
        Deno.writeFileSync(own.path, bytes);
        loop.clearFd();
        loop.close();
        assert(own.isFree);
        assertEquals(Deno.readFileSync(path).subarray(0, 4096), bytes);
      }
    }),
  );

  it(
    "throws ENXIO for a free device",
    withScratch(() => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      const error = assertThrows(() => loop.clearFd(), LoopError);
      assertEquals(error.code, "ENXIO");
      assertEquals(error.operation, "LOOP_CLR_FD");
      assertEquals(error.path, own.path);
    }),
  );
});

describe("Loop.changeFd()", onDevices, () => {
  it(
    "exchanges the file of a read-only device and keeps its properties",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const first = scratch.image(MiB, "first");
      const second = scratch.image(MiB, "second");
      Deno.writeFileSync(second, new Uint8Array(MiB).fill(7));
      using loop = new Loop(own.minor);
      using a = openFile(first);
      using b = openFile(second);
      loop.configure(a.fd, {
        readOnly: true,
        autoclear: true,
        offset: 4096,
        reference: "kept",
      });
      const before = loop.getStatus();
      const sequence = diskSequenceOf(own.name);
      assertEquals(loop.read(new Uint8Array(4096), 0), 4096);
      loop.changeFd(b.fd);
      if (noDiskSequence !== undefined) loop.flushBuffers();
      const after = loop.getStatus();
      if (noDiskSequence === undefined) {
        assertGreater(loop.getDiskSequence(), sequence);
      } else {
        assertEquals(code(() => loop.getDiskSequence()), "EINVAL");
      }
      assertNotEquals(after.backingInode, before.backingInode);
      assertEquals(after.backingInode, BigInt(Deno.statSync(second).ino!));
      assertEquals(
        { ...after, backingInode: 0n },
        { ...before, backingInode: 0n },
      );
      assertEquals(
        runOk("od", "-An", "-tu1", "-N1", own.path).trim(),
        "7",
      );
      // The descriptor allows writing, but the device does not.
      assert(loop.isReadOnly());
    }),
  );

  it(
    "refuses a writable device, another size and a free device",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using a = openFile(scratch.image(MiB, "a"));
      using small = openFile(scratch.image(4096, "small"));
      assertEquals(code(() => loop.changeFd(a.fd)), "ENXIO");
      loop.configure(a.fd, { autoclear: true });
      assertEquals(code(() => loop.changeFd(a.fd)), "EINVAL");
      loop.clearFd();
      loop.close();
      assert(own.isFree);
      using again = new Loop(own.minor);
      again.configure(a.fd, { autoclear: true, readOnly: true });
      assertEquals(code(() => again.changeFd(small.fd)), "EINVAL");
    }),
  );
});

describe("Loop.setCapacity()", onDevices, () => {
  it(
    "resizes the device to a file that has grown",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      assertEquals(code(() => loop.setCapacity()), "ENXIO");
      const path = scratch.image(MiB);
      using file = openFile(path);
      loop.configure(file.fd, { autoclear: true });
      Deno.truncateSync(path, 2 * MiB);
      assertEquals(loop.getSize(), MiB);
      loop.setCapacity();
      assertEquals(loop.getSize(), 2 * MiB);
    }),
  );
});

describe("Loop.setDirectIo()", onDevices, () => {
  it(
    "turns direct I/O on and off, and throws if it is not possible",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image(8 * MiB));
      loop.configure(file.fd, { autoclear: true, blockSize: 4096 });
      loop.setDirectIo();
      assertEquals(attribute(own.name, "loop/dio"), "1");
      assert(loop.getStatus().directIo);
      loop.setDirectIo(false);
      assertEquals(attribute(own.name, "loop/dio"), "0");
      loop.setStatus({ offset: 512 + 4 });
      const error = assertThrows(() => loop.setDirectIo(true), LoopError);
      assertEquals(error.code, "EINVAL");
      assertEquals(error.operation, "LOOP_SET_DIRECT_IO");
    }),
  );
});

describe("Loop.setBlockSize()", onDevices, () => {
  it(
    "sets every size that the kernel supports, and refuses others before the call",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      assertEquals(code(() => loop.setBlockSize(512)), "ENXIO");
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true });
      for (const size of [4096, 512, 1024, 2048]) {
        loop.setBlockSize(size);
        assertEquals(loop.getBlockSize(), size);
        assertEquals(
          attribute(own.name, "queue/logical_block_size"),
          `${size}`,
        );
      }
      for (const size of [0, 1, 513, 1000, 131072]) {
        assertThrows(() => loop.setBlockSize(size), RangeError);
      }
      assertEquals(loop.getBlockSize(), 2048);
    }),
  );
});

describe("Loop.configure()", onDevices, () => {
  it(
    "sets everything in one step",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      const path = scratch.image();
      using file = openFile(path);
      loop.configure(file.fd, {
        offset: 4096,
        sizelimit: 8192n,
        blockSize: 1024,
        readOnly: true,
        autoclear: true,
        partscan: true,
        reference: "référence",
      });
      const { dev, ino } = Deno.statSync(path);
      assertEquals(loop.getStatus(), {
        minor: own.minor,
        offset: 4096,
        sizelimit: 8192,
        readOnly: true,
        autoclear: true,
        partscan: true,
        directIo: false,
        reference: "référence",
        backingDevice: dev,
        backingInode: BigInt(ino!),
        backingRdev: 0,
      });
      assertEquals(loop.getSize(), 8192);
      assertEquals(loop.getBlockSize(), 1024);
    }),
  );

  it(
    "returns the device number of a backing block device",
    withScratch((scratch) => {
      using a = new OwnDevice();
      using b = new OwnDevice();
      using lower = new Loop(a.minor);
      using upper = new Loop(b.minor);
      using file = openFile(scratch.image());
      lower.configure(file.fd, { autoclear: true });
      {
        using backing = openFile(a.path);
        upper.configure(backing.fd, { autoclear: true });
      }
      assertEquals(
        upper.getStatus().backingRdev,
        Deno.statSync(a.path).rdev,
      );
      upper.close();
    }),
  );

  it(
    "binds read-only through a node opened readOnly",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor, { readOnly: true });
      using file = openFile(scratch.image());
      assertThrows(
        () => loop.configure(file.fd, { readOnly: false }),
        TypeError,
        "readOnly",
      );
      assert(own.isFree);
      loop.configure(file.fd, { autoclear: true });
      assert(loop.isReadOnly());
    }),
  );

  it(
    "refuses a device that another process holds exclusively",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      using _holder = holdExclusively(own.path);
      assertEquals(code(() => loop.configure(file.fd)), "EBUSY");
    }),
  );

  it(
    "accepts offsets that are not safe integers, which getStatus() refuses to round",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true, sizelimit: 2n ** 63n - 1n });
      assertEquals(loop.getInfo().sizelimit, 2n ** 63n - 1n);
      assertThrows(() => loop.getStatus(), RangeError, "sizelimit");
      loop.setStatus({ sizelimit: 0 });
      assertEquals(loop.getStatus().sizelimit, 0);
    }),
  );
});

describe("Loop.setStatus()", onDevices, () => {
  it(
    "changes the given fields, and keeps the rest",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      assertEquals(code(() => loop.setStatus({})), "ENXIO");
      using file = openFile(scratch.image());
      loop.configure(file.fd, {
        offset: 4096,
        sizelimit: 8192,
        autoclear: true,
        reference: "a",
      });
      const before = loop.getStatus();
      loop.setStatus({});
      loop.setStatus({ offset: undefined, autoclear: undefined });
      assertEquals(loop.getStatus(), before);
      loop.setStatus({ reference: "b" });
      assertEquals(loop.getStatus(), { ...before, reference: "b" });
      loop.setStatus({ sizelimit: 512 });
      assertEquals(attribute(own.name, "loop/sizelimit"), "512");
      assertEquals(loop.getStatus(), {
        ...before,
        reference: "b",
        sizelimit: 512,
      });
    }),
  );

  it(
    "resets offset, sizelimit and autoclear to 0",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, {
        offset: 4096,
        sizelimit: 8192,
        autoclear: true,
        reference: "a",
      });
      loop.setStatus({
        offset: 0,
        sizelimit: 0,
        autoclear: false,
        reference: "",
      });
      assertEquals(attribute(own.name, "loop/offset"), "0");
      assertEquals(attribute(own.name, "loop/sizelimit"), "0");
      assertEquals(attribute(own.name, "loop/autoclear"), "0");
      assertEquals(loop.getStatus().reference, "");
      assertEquals(loop.getSize(), MiB);
      loop.setStatus({ autoclear: true });
    }),
  );

  it(
    "turns partscan on, and refuses to turn it off",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true });
      loop.setStatus({ partscan: false }); // already off
      loop.setStatus({ partscan: true });
      assertEquals(attribute(own.name, "loop/partscan"), "1");
      loop.setStatus({ partscan: true });
      assertThrows(
        () => loop.setStatus({ partscan: false, offset: 512 }),
        TypeError,
        "partscan",
      );
      assertEquals(loop.getStatus().offset, 0);
    }),
  );

  it(
    "refuses to move a device that another process holds exclusively",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      const path = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", path);
      using file = openFile(path);
      loop.configure(file.fd, { autoclear: true });
      Deno.mkdirSync(`${scratch.path}/mnt`);
      runOk("mount", own.path, `${scratch.path}/mnt`);
      try {
        assertEquals(code(() => loop.setStatus({ offset: 4096 })), "EBUSY");
        assertEquals(code(() => loop.setStatus({ sizelimit: 4096 })), "EBUSY");
        assertEquals(code(() => loop.setBlockSize(4096)), "EBUSY");
        Deno.writeTextFileSync(`${scratch.path}/mnt/file`, "intact");
      } finally {
        runOk("umount", `${scratch.path}/mnt`);
      }
      loop.close();
      runOk("fsck.ext4", "-n", "-f", path);
    }),
  );

  it(
    "refuses bad values before it changes anything",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true, offset: 512 });
      const before = loop.getStatus();
      for (const offset of [-1, 1.5, NaN, 2n ** 63n]) {
        assertThrows(() => loop.setStatus({ offset }), RangeError);
      }
      assertThrows(
        () => loop.setStatus({ reference: "x".repeat(64) }),
        RangeError,
      );
      assertEquals(loop.getStatus(), before);
    }),
  );
});

describe("Loop.getInfo()", onDevices, () => {
  it(
    "preserves unknown bytes when it is written back",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true });
      // Another program stores its own bytes after a NUL in the name.
      const info = loop.getInfo();
      info.bytes.set([0x61, 0, 0xff, 0xfe], 56);
      assertEquals(ioctlPointer(loop.fd, LOOP_SET_STATUS64, info.bytes), 0);
      loop.setStatus({ sizelimit: 4096 });
      assertEquals([...loop.getInfo().bytes.slice(56, 61)], [
        0x61,
        0,
        0xff,
        0xfe,
        0,
      ]);
      assertEquals(loop.getStatus().reference, "a");
    }),
  );
});

describe("Loop.lock()", onDevices, () => {
  it(
    "excludes others until unlock(), and returns false while excluded",
    withScratch(() => {
      using own = new OwnDevice();
      using a = new Loop(own.minor);
      using b = new Loop(own.minor);
      // udev locks a device while it examines it.
      assert(isSoon(() => a.lock("exclusive")));
      assertEquals(b.lock("shared"), false);
      assertEquals(run("flock", "-n", own.path, "true").code, 1);
      assertEquals(a.lock("shared"), true);
      assertEquals(b.lock("shared"), true);
      a.unlock();
      a.unlock();
      assert(isSoon(() => b.lock("exclusive")));
      b.close();
      assert(isSoon(() => run("flock", "-n", own.path, "true").code === 0));
      assertThrows(() => a.lock("both" as "shared"), TypeError);
    }),
  );
});

describe("Loop.mknod()", onDevices, () => {
  it(
    "creates a node with exactly the given mode, whatever the umask is",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using directory = openDirectory(scratch.path);
      const node = `${scratch.path}/${own.name}`;
      const before = Deno.umask(0o077);
      try {
        loop.mknod({ dirFd: directory.fd, mode: 0o666 });
      } finally {
        Deno.umask(before);
      }
      const { mode, rdev, isBlockDevice } = Deno.statSync(node);
      assertEquals(mode! & 0o7777, 0o666);
      assertEquals(rdev, Deno.statSync(own.path).rdev);
      assert(isBlockDevice);
      const error = assertThrows(
        () => loop.mknod({ dirFd: directory.fd }),
        LoopError,
      );
      assertEquals(error.code, "EEXIST");
      assertEquals(error.path, node);
      Deno.removeSync(node);
      loop.mknod({ dirFd: directory.fd });
      assertEquals(Deno.statSync(node).mode! & 0o7777, 0o600);
      assertThrows(
        () => loop.mknod({ dirFd: directory.fd, mode: 0o1777 }),
        RangeError,
      );
    }),
  );

  it(
    "changes only the mode of its own node in a directory of another user",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const target = scratch.image(0, "secret");
      Deno.chmodSync(target, 0o400);
      const directory = Racer.directory(scratch);
      await using _racer = Racer.linkingNodes(directory, own.name, target);
      using loop = new Loop(own.minor);
      using descriptor = openDirectory(directory);
      const before = Deno.umask(0o077);
      try {
        for (let round = 0; round < times(1500); round++) {
          try {
            loop.mknod({ dirFd: descriptor.fd, mode: 0o666 });
          } catch (error) {
            assert(error instanceof LoopError);
            assert(["EEXIST", "ENOENT"].includes(error.code), error.message);
          }
          assertEquals(Deno.statSync(target).mode! & 0o7777, 0o400);
        }
      } finally {
        Deno.umask(before);
      }
    }),
  );

  it(
    "leaves no node if its mode cannot be set",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = `${scratch.path}/mknod.ts`;
      Deno.writeTextFileSync(
        path,
        script(`using loop = new Loop(${own.minor});
          using directory = loopdev.openDirectory("${scratch.path}");
          await tell(() => loop.mknod({ dirFd: directory.fd, mode: 0o666 }));`),
      );
      const { stdout, stderr } = run(
        "bash",
        "-c",
        `umask 077; strace -f -qq -o /dev/null -e trace=fchmodat -e inject=fchmodat:error=EPERM \
           '${Deno.execPath()}' run -q --no-check --allow-ffi '${path}'`,
      );
      assertMatch(stdout, /^LoopError EPERM Cannot create node /, stderr);
      assertThrows(() => Deno.lstatSync(`${scratch.path}/${own.name}`));
    }),
  );

  it(
    "creates the node in /dev without dirFd",
    withScratch(() => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      assertEquals(code(() => loop.mknod()), "EEXIST");
      Deno.removeSync(own.path);
      loop.mknod();
      assertEquals(Deno.statSync(own.path).rdev, Deno.statSync(own.path).rdev);
      assert(Deno.statSync(own.path).isBlockDevice);
    }),
  );
});

describe("Loop.isReadOnly()", onDevices, () => {
  it(
    "returns true after blockdev --setro",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      using file = openFile(scratch.image());
      loop.configure(file.fd, { autoclear: true });
      assertEquals(loop.isReadOnly(), false);
      runOk("blockdev", "--setro", own.path);
      assertEquals(loop.isReadOnly(), true);
      assertEquals(loop.getStatus().readOnly, false);
      runOk("blockdev", "--setrw", own.path);
    }),
  );
});

describe("Loop.flushBuffers()", onDevices, () => {
  it(
    "shows data written directly to the file",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      const path = scratch.image();
      using file = openFile(path);
      loop.configure(file.fd, { autoclear: true });
      const first = () => runOk("od", "-An", "-tu1", "-N1", own.path).trim();
      assertEquals(first(), "0");
      Deno.writeFileSync(path, new Uint8Array(MiB).fill(9));
      loop.flushBuffers();
      assertEquals(first(), "9");
    }),
  );
});

describe("Loop.sync()", onDevices, () => {
  it(
    "writes data to the file",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using loop = new Loop(own.minor);
      const path = scratch.image();
      using file = openFile(path);
      loop.configure(file.fd, { autoclear: true });
      Deno.writeFileSync(own.path, new Uint8Array(4096).fill(3));
      loop.sync();
      assertEquals(Deno.readFileSync(path)[4095], 3);
    }),
  );
});

describe("Loop.close()", onDevices, () => {
  it(
    "closes once, and everything after it throws EBADF",
    withScratch(() => {
      using own = new OwnDevice();
      using memory = openMemory(4096);
      using directory = openDirectory("/tmp");
      const loop = new Loop(own.minor);
      loop.close();
      loop.close();
      loop[Symbol.dispose]();
      assertEquals(loop.fd, -1);
      const calls: [string, () => unknown][] = [
        ["LOOP_SET_FD", () => loop.setFd(memory.fd)],
        ["LOOP_CLR_FD", () => loop.clearFd()],
        ["LOOP_CHANGE_FD", () => loop.changeFd(memory.fd)],
        ["LOOP_SET_CAPACITY", () => loop.setCapacity()],
        ["LOOP_SET_DIRECT_IO", () => loop.setDirectIo()],
        ["LOOP_SET_BLOCK_SIZE", () => loop.setBlockSize(512)],
        ["LOOP_CONFIGURE", () => loop.configure(memory.fd)],
        ["LOOP_GET_STATUS64", () => loop.getInfo()],
        ["LOOP_GET_STATUS64", () => loop.getStatus()],
        ["LOOP_SET_STATUS64", () => loop.setStatus({})],
        ["BLKGETSIZE64", () => loop.getSize()],
        ["BLKSSZGET", () => loop.getBlockSize()],
        ["BLKGETDISKSEQ", () => loop.getDiskSequence()],
        ["BLKROGET", () => loop.isReadOnly()],
        ["fsync", () => loop.sync()],
        ["BLKFLSBUF", () => loop.flushBuffers()],
        ["flock", () => loop.lock("shared")],
        ["flock", () => loop.unlock()],
        ["mknod", () => loop.mknod({ dirFd: directory.fd })],
      ];
      for (const [operation, call] of calls) {
        const error = assertThrows(call, LoopError, "it is closed");
        assertEquals(error.code, "EBADF");
        assertEquals(error.errno, 9);
        assertEquals(error.operation, operation);
      }
    }),
  );
});
