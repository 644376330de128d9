/**
 * Tests unusual environments: each gives the correct result, or an error with cause and
 * remedy.
 */
import { attach, list, LoopError } from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  inNamespace,
  NOBODY,
  PROJECT,
  publish,
  TMPFS_DEV,
} from "./namespace.ts";
import {
  mounted,
  onAnyKernel,
  onDevices,
  OwnDevice,
  runOk,
  Undo,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

describe("an unprivileged user", onDevices, () => {
  it(
    "can list and find, and gets an error that names who may do the rest",
    withScratch(async (scratch) => {
      publish(scratch);
      const image = scratch.image();
      Deno.chmodSync(image, 0o666);
      await using a = await attach(image, { offset: 4096 });
      const { stdout, stderr } = inNamespace(
        scratch,
        "true",
        `await tell(() => list().some(({ path }) => path === "${a.path}"));
         await tell(() => find("${image}").map(({ path }) => path));
         await tell(() => holders(${a.minor}).then(({ holders }) => holders.filter(({ pid }) => pid === ${Deno.pid})));
         await tell(() => attach("${image}", { overlap: "allow" }));
         await tell(() => detach(${a.minor}));
         await tell(() => new LoopControl());`,
        {
          user: NOBODY,
          deno: `${scratch.path}/deno`,
          from: scratch.path,
        },
      );
      const [listed, found, held, attached, detached, control] = stdout.split(
        "\n",
      );
      assertEquals(listed, "ok true", stderr);
      assertEquals(found, `ok ["${a.path}"]`);
      assertEquals(held, "ok []");
      const denied = /^LoopError EACCES .* root and the group of the node/;
      assertMatch(attached!, denied);
      assertMatch(detached!, denied);
      assertMatch(control!, denied);
      await a.detach();
    }),
  );

  it(
    "attaches and detaches as a member of the group of the nodes",
    withScratch((scratch) => {
      publish(scratch);
      using own = new OwnDevice();
      const image = scratch.image();
      Deno.chmodSync(image, 0o666);
      const { stdout, stderr } = inNamespace(
        scratch,
        `mount -t tmpfs dev /dev; mknod /dev/loop-control c 10 237
         mknod ${own.path} b 7 ${own.minor}; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
         chgrp 4242 /dev/loop*; chmod 660 /dev/loop*`,
        `await tell(async () => {
           await using device = await attach("${image}", { minor: ${own.minor}, partscan: true });
           return device.size;
         });
         await tell(async () => {
           const device = await attach("${image}", { minor: ${own.minor} });
           const path = await device.persist();
           await detach(path);
           return path;
         });`,
        {
          user: "setpriv --reuid 65534 --regid 4242 --clear-groups",
          deno: `${scratch.path}/deno`,
          from: scratch.path,
        },
      );
      assertEquals(stdout, `ok ${MiB}\nok "${own.path}"\n`, stderr);
    }),
  );
});

describe("a /dev without nodes", onDevices, () => {
  it(
    "does not prevent attach() and detach(), which leave nothing there",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = scratch.image();
      const { stdout, stderr } = inNamespace(
        scratch,
        `${TMPFS_DEV}; mount -t tmpfs run /run`,
        `await tell(async () => {
           await using device = await attach("${image}", { minor: ${own.minor} });
           return [device.path, device.size];
         });
         const { listDirectory } = await import("${PROJECT}/lib/sys/sysfs.ts");
         await tell(async () => {
           const device = await attach("${image}", { minor: ${own.minor} });
           const path = await device.persist();
           await detach(path);
           return path;
         });
         await tell(async () => {
           await using device = await attach("${image}");
           return device.size;
         });
         const left = ["/dev", "/run"].flatMap(listDirectory);
         console.log(left.filter((name) => name.includes("loop")));`,
      );
      const path = `"/run/loopdev-[0-9a-f-]{36}/${own.name}"`;
      assertMatch(
        stdout,
        new RegExp(
          `^ok \\[${path},${MiB}\\]\nok ${path}\nok ${MiB}\n\\[\\]\n$`,
        ),
        stderr,
      );
    }),
  );

  it(
    "is named as the cause if no node may be created",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = scratch.image();
      const { stdout, stderr } = inNamespace(
        scratch,
        `${TMPFS_DEV}; mknod /dev/loop-control c 10 237`,
        `await tell(() => attach("${image}", { minor: ${own.minor} }));
         await tell(() => detach(${own.minor}));`,
        { user: "setpriv --bounding-set -mknod" },
      );
      const missing =
        /^(LoopError ENOENT .* the kernel has loop\d+, but it has no node here\n){2}$/;
      assertMatch(stdout, missing, stderr);
      const control = inNamespace(
        scratch,
        TMPFS_DEV,
        `await tell(() => attach("${image}"));`,
        { user: "setpriv --bounding-set -mknod" },
      );
      assertMatch(
        control.stdout,
        /^LoopError ENOENT Cannot open "\/dev\/loop-control": .*modprobe loop\n$/,
        control.stderr,
      );
    }),
  );

  it(
    "is replaced by attach({ nodes }), with nodes that other programs can open",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = scratch.image(64 * MiB);
      runOk(
        "bash",
        "-c",
        `printf 'label: gpt\nsize=8M\nsize=8M\n' | sfdisk --quiet '${image}'`,
      );
      const nodes = `${scratch.path}/nodes`;
      Deno.mkdirSync(nodes);
      const { stdout, stderr } = inNamespace(
        scratch,
        TMPFS_DEV,
        `const { listDirectory } = await import("${PROJECT}/lib/sys/sysfs.ts");
         await tell(async () => {
           await using device = await attach("${image}", {
             minor: ${own.minor}, partscan: true, nodes: "${nodes}",
           });
           const found = await device.partitions();
           for (const { path } of found) loopdev.openFile(path).close();
           loopdev.openFile(device.path).close();
           console.log(listDirectory("${nodes}").sort().join(" "));
           return [device.path, ...found.map(({ path }) => path)];
         });
         console.log(listDirectory("${nodes}"));`,
      );
      const names = [own.name, `${own.name}p1`, `${own.name}p2`];
      const paths = names.map((name) => `${nodes}/${name}`);
      assertEquals(
        stdout,
        `${names.join(" ")}\nok ${JSON.stringify(paths)}\n[]\n`,
        stderr,
      );
    }),
  );

  it(
    "that is read-only does not prevent attaching",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { stdout, stderr } = inNamespace(
        scratch,
        "mount --bind /dev /dev; mount -o remount,bind,ro /dev",
        `await tell(async () => {
           await using device = await attach("${scratch.image()}", { minor: ${own.minor} });
           return device.size;
         });`,
      );
      assertEquals(stdout, `ok ${MiB}\n`, stderr);
    }),
  );

  it(
    "that has other files with those names is named as the cause",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      Deno.removeSync(own.path);
      using _node = new Undo(() => {
        Deno.removeSync(own.path);
        runOk("mknod", own.path, "b", "7", `${own.minor}`);
      });
      runOk("mkfifo", own.path);
      const error = await assertRejects(
        () => attach(scratch.image(), { minor: own.minor }),
        LoopError,
      );
      assertMatch(error.message, /it is a FIFO/);
    }),
  );
});

describe("no /sys", onDevices, () => {
  it(
    "does not prevent attach() and detach(), and is named by list()",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = scratch.image();
      const { stdout, stderr } = inNamespace(
        scratch,
        "mount -t tmpfs sys /sys",
        `await tell(async () => {
           const device = await attach("${image}", { minor: ${own.minor} });
           const other = Loop.open(device.path, { readOnly: true });
           await tell(() => device.detach({ timeout: 20 }));
           other.close();
           await device.detach();
           return device.size;
         });
         await tell(async () => {
           await using device = await attach("${image}", { minor: ${own.minor} });
           await detach(await device.persist());
         });
         await tell(() => list());`,
      );
      const [busy, closed, again, listed] = stdout.split("\n");
      assertMatch(busy!, /^LoopBusyError EBUSY/, stderr);
      assertMatch(closed!, /^LoopError EBADF/);
      assertEquals(again, "ok null");
      assertMatch(listed!, /^LoopError ENOENT .*sysfs is not mounted on \/sys/);
    }),
  );
});

describe("no /proc", onDevices, () => {
  it(
    "does not prevent opening exactly the examined file, without leaking a descriptor",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = scratch.image();
      runOk("mkfifo", `${scratch.path}/fifo`);
      const { stdout, stderr } = inNamespace(
        scratch,
        "mount -t tmpfs proc /proc",
        `const { openFile, openMemory } = loopdev;
         const nextDescriptor = () => {
           using memory = openMemory(1);
           return memory.fd;
         };
         const first = nextDescriptor();
         await tell(() => openFile("${image}").close());
         await tell(() => openFile("${scratch.path}/fifo", { readOnly: true }));
         await tell(() => new LoopControl().close());
         await tell(() => Loop.open("${own.path}").close());
         console.log(nextDescriptor() - first);`,
      );
      const [file, fifo, control, loop, leaked] = stdout.split("\n");
      assertEquals([file, control, loop], Array(3).fill("ok null"), stderr);
      assertMatch(fifo!, /^LoopError EINVAL .* it is a FIFO/);
      assertEquals(leaked, "0");
    }),
  );
});

describe("few descriptors", onDevices, () => {
  it(
    ...onAnyKernel("are enough, or are named as the cause"),
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = scratch.image();
      let enough = 0;
      for (const limit of [20, 22, 24, 26, 28, 30, 40]) {
        const { stdout } = inNamespace(
          scratch,
          `ulimit -n ${limit}`,
          `await tell(async () => {
             await using device = await attach("${image}", { minor: ${own.minor} });
             return device.size;
           });`,
        );
        if (stdout === "") continue; // not even Deno starts
        assertMatch(stdout, /^(ok 1048576|LoopError EMFILE .*)\n$/);
        if (stdout.startsWith("ok")) enough++;
        assert(own.isFree);
      }
      assert(enough > 0);
    }),
  );
});

describe("attach() with nodes", onDevices, () => {
  it(
    "refuses a devtmpfs, files, and existing names",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const refused = async (nodes: string) =>
        (await assertRejects(() => attach(path, { nodes }), LoopError)).code;
      assertEquals(await refused("/dev"), "EINVAL");
      assertEquals(await refused(path), "ENOTDIR");
      assertEquals(await refused(`${scratch.path}/none`), "ENOENT");
      using own = new OwnDevice();
      scratch.image(0, own.name);
      const error = await assertRejects(
        () => attach(path, { minor: own.minor, nodes: scratch.path }),
        LoopError,
      );
      assertEquals(error.code, "EEXIST");
      assert(own.isFree);
      assert(Deno.statSync(`${scratch.path}/${own.name}`).isFile);
    }),
  );
});

describe("every file system", onDevices, () => {
  /** Attaches, writes, detaches, and reads the data back. */
  async function roundTrip(path: string): Promise<void> {
    Deno.createSync(path).close();
    Deno.truncateSync(path, MiB);
    await using a = await attach(path, { overlap: "refuse" });
    Deno.writeFileSync(a.path, new Uint8Array(4096).fill(3));
    assert(list().some((device) => device.backingFile === path));
    await a.detach();
    assertEquals(Deno.readFileSync(path)[4095], 3);
  }

  it(
    "tmpfs works",
    withScratch(async (scratch) => {
      Deno.mkdirSync(`${scratch.path}/mnt`);
      using _mount = mounted("-t", "tmpfs", "tmpfs", `${scratch.path}/mnt`);
      await roundTrip(`${scratch.path}/mnt/disk.img`);
    }),
  );

  it(
    "overlayfs works, even for a file of the lower layer",
    withScratch(async (scratch) => {
      const { path } = scratch;
      Deno.mkdirSync(`${path}/mnt`);
      using _tmpfs = mounted("-t", "tmpfs", "tmpfs", `${path}/mnt`);
      for (const name of ["lower", "upper", "work", "merged"]) {
        Deno.mkdirSync(`${path}/mnt/${name}`);
      }
      Deno.writeFileSync(`${path}/mnt/lower/old.img`, new Uint8Array(MiB));
      using _overlay = mounted(
        "-t",
        "overlay",
        "overlay",
        "-o",
        `lowerdir=${path}/mnt/lower,upperdir=${path}/mnt/upper,workdir=${path}/mnt/work`,
        `${path}/mnt/merged`,
      );
      await roundTrip(`${path}/mnt/merged/disk.img`);
      await using a = await attach(`${path}/mnt/merged/old.img`, {
        readOnly: true,
      });
      assertEquals(a.size, MiB);
      await a.detach();
    }),
  );
});

describe("a file that changes while it is attached", onDevices, () => {
  it(
    "may be deleted, truncated or grown",
    withScratch(async (scratch) => {
      const path = scratch.image();
      {
        await using a = await attach(path);
        Deno.truncateSync(path, 4096);
        assertEquals(a.size, MiB);
        await a.detach();
      }
      {
        await using a = await attach(path);
        Deno.truncateSync(path, 2 * MiB);
        assertEquals(a.size, 4096);
        Deno.writeFileSync(a.path, new Uint8Array(4096).fill(2));
        await a.detach();
        assertEquals(Deno.readFileSync(path)[4095], 2);
      }
      await using a = await attach(path);
      Deno.removeSync(path);
      Deno.writeFileSync(a.path, new Uint8Array(4096).fill(4));
      await a.detach();
    }),
  );
});

describe("a limit of 2^63-1 by another tool", onDevices, () => {
  it(
    "is listed and detached",
    withScratch(async (scratch) => {
      const limit = `${2n ** 63n - 1n}`;
      const path = scratch.image();
      const device = runOk(
        ...["losetup", "--find", "--show", "--sizelimit"] as [
          string,
          ...string[],
        ],
        limit,
        path,
      );
      assertEquals(
        list().find((found) => found.path === device)?.sizelimit,
        Number.MAX_SAFE_INTEGER,
      );
      const { detach } = await import("@loopdev/loopdev");
      await detach(device);
    }),
  );
});
