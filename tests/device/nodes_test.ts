/**
 * Tests the nodes that attach() creates for other programs: they are correct, and
 * removed afterwards.
 */
import {
  attach,
  type AttachOptions,
  doctor,
  LoopError,
  openMemory,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { inNamespace, PROJECT, TMPFS_DEV } from "./namespace.ts";
import {
  CLI,
  cli,
  isSoon,
  mounted,
  onDevices,
  OwnDevice,
  run,
  runOk,
  type Scratch,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

function names(directory: string): string[] {
  return Array.from(Deno.readDirSync(directory), ({ name }) => name).sort();
}

function makeDirectory(scratch: Scratch, name: string): string {
  const path = `${scratch.path}/${name}`;
  Deno.mkdirSync(path);
  return path;
}

function partitioned(scratch: Scratch): string {
  const image = scratch.image(64 * MiB);
  runOk(
    "sh",
    "-c",
    `printf 'label: gpt\nsize=8M\nsize=8M\n' | sfdisk --quiet '${image}'`,
  );
  return image;
}

/** Shell command to run loopdev. */
const LOOPDEV =
  `loopdev() { '${Deno.execPath()}' run -q --no-prompt --allow-ffi --allow-run '${CLI}' "$@"; }`;

describe("attach() with nodes", onDevices, () => {
  it(
    "creates and removes nodes in the given directory, even if that is moved",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      const other = makeDirectory(scratch, "other");
      const foreign = `${other}/${own.name}`;
      await using device = await attach(partitioned(scratch), {
        nodes,
        minor: own.minor,
      });
      runOk("mknod", foreign, "b", "7", `${own.minor}`);
      Deno.renameSync(nodes, `${scratch.path}/moved`);
      Deno.symlinkSync(other, nodes);
      await device.partitions();
      assertEquals(names(`${scratch.path}/moved`).length, 3);
      await device.detach();
      assertEquals(names(other), [own.name]);
      assertEquals(names(`${scratch.path}/moved`), []);
    }),
  );

  it(
    "removes nothing from a directory that replaced the given one after persist()",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      const options = { nodes, minor: own.minor };
      const device = await attach(scratch.image(), options);
      await device.persist();
      assertEquals(scratch.leaked(), []);
      Deno.renameSync(nodes, `${scratch.path}/moved`);
      Deno.mkdirSync(nodes);
      runOk("mknod", `${nodes}/${own.name}`, "b", "7", `${own.minor}`);
      const error = await assertRejects(() => device.detach(), LoopError);
      assertEquals(error.code, "ESTALE");
      assert(own.isFree);
      assertEquals(names(nodes), [own.name]);
      Deno.removeSync(nodes, { recursive: true });
      Deno.renameSync(`${scratch.path}/moved`, nodes);
      await device.detach();
      assertEquals(names(nodes), []);
    }),
  );

  it(
    "leaves nodes of loopdev attach, of which loopdev detach warns",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      const options = ["--device", own.path, "--nodes", nodes];
      const path = `${nodes}/${own.name}`;
      assertEquals(
        cli("attach", ...options, scratch.image()).stdout,
        `${path}\n`,
      );
      const { code, stderr } = cli("detach", path);
      assertEquals(code, 0);
      assertMatch(stderr, /^loopdev: warning: .* stays, and gives access /);
      assertEquals(names(nodes), [own.name]);
      assert(!own.isBound);
    }),
  );

  it(
    "uses a node of the device as it is, and leaves it",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      const node = `${nodes}/${own.name}`;
      runOk("mknod", "-m", "640", node, "b", "7", `${own.minor}`);
      const before = Deno.lstatSync(node);
      await using device = await attach(scratch.image(), {
        nodes,
        minor: own.minor,
      });
      assertEquals(device.path, node);
      await device.detach();
      const after = Deno.lstatSync(node);
      assertEquals([after.ino, after.mode], [before.ino, before.mode]);
    }),
  );

  it(
    "does not remove a file that replaced its node",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      const node = `${nodes}/${own.name}`;
      await using device = await attach(scratch.image(), {
        nodes,
        minor: own.minor,
      });
      runOk("mknod", `${node}.new`, "b", "7", `${own.minor}`);
      Deno.renameSync(`${node}.new`, node);
      await device.detach();
      assertEquals(names(nodes), [own.name]);
    }),
  );

  it(
    "does not follow or remove a link with the name of the node",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      Deno.symlinkSync(own.path, `${nodes}/${own.name}`);
      const error = await assertRejects(
        () => attach(scratch.image(), { nodes, minor: own.minor }),
        LoopError,
      );
      assertEquals(error.code, "EEXIST");
      assert(own.isFree);
      assertEquals(names(nodes), [own.name]);
    }),
  );

  it(
    "makes detach() throw if a node cannot be removed, with the device free",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const nodes = makeDirectory(scratch, "nodes");
      using _mount = mounted("-t", "tmpfs", "tmpfs", nodes);
      const options = { nodes, minor: own.minor };
      for (const persists of [false, true]) {
        const device = await attach(scratch.image(), options);
        if (persists) await device.persist();
        runOk("mount", "-o", "remount,ro", nodes);
        const error = await assertRejects(() => device.detach(), LoopError);
        assertEquals([error.code, error.path], ["EROFS", device.path]);
        assert(own.isFree);
        assertEquals(names(nodes), [own.name]);
        runOk("mount", "-o", "remount,rw", nodes);
        await device.detach();
        assertEquals(names(nodes), []);
      }
    }),
  );

  it(
    "creates no more nodes for a partitions() call in progress at detach()",
    withScratch(async (scratch) => {
      const nodes = makeDirectory(scratch, "nodes");
      await using device = await attach(partitioned(scratch), { nodes });
      const before = assertRejects(() => device.partitions(), LoopError);
      const detached = device.detach();
      const after = assertRejects(() => device.partitions(), LoopError);
      await detached;
      for (const error of [await before, await after]) {
        assertEquals(error.code, "EBADF");
      }
      assertEquals(names(nodes), []);
    }),
  );

  it(
    "refuses a directory whose name is not UTF-8",
    withScratch(async (scratch) => {
      const memory = openMemory(MiB);
      // As many bytes as the replacement character has.
      runOk("bash", "-c", `mkdir '${scratch.path}/'$'\\xf0\\x9f\\x98'`);
      const nodes = new URL(`file://${scratch.path}/%f0%9f%98`);
      await assertRejects(() => attach(memory, { nodes }), TypeError, "UTF-8");
      memory.close();
    }),
  );

  it(
    "leaves no node and no descriptor if attaching fails",
    withScratch(async (scratch) => {
      const nodes = makeDirectory(scratch, "nodes");
      const fails = async (file: string, options: AttachOptions) => {
        await assertRejects(() => attach(file, { nodes, ...options }));
        assertEquals(names(nodes), []);
        assertEquals(scratch.leaked(), []);
      };
      await fails(`${scratch.path}/none`, {});
      await fails("/dev/null", {});
      await fails(scratch.image(), { signal: AbortSignal.abort() });
    }),
  );
});

describe("attach() where /dev has no node", onDevices, () => {
  it(
    "returns a path that can be opened until detach()",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { stdout, stderr } = inNamespace(
        scratch,
        TMPFS_DEV,
        `const { listDirectory } = await import(new URL("lib/sys/sysfs.ts", "${
          import.meta.resolve("../../")
        }"));
         const { openFile } = loopdev;
         const device = await attach("${
          partitioned(scratch)
        }", { minor: ${own.minor} });
         console.log(device.path);
         const paths = [device.path, ...(await device.partitions()).map(({ path }) => path)];
         paths.forEach((path) => openFile(path).close());
         const directory = device.path.replace(/\\/[^/]*$/, "");
         console.log(listDirectory(directory).sort().join(" "));
         await device.detach();
         console.log(listDirectory(directory));`,
      );
      const { name } = own;
      const expected = new RegExp(
        `^/(run|tmp|dev)/loopdev-[0-9a-f-]{36}/${name}\\n${name} ${name}p1 ${name}p2\\n-2\\n$`,
      );
      assertMatch(stdout, expected, stderr);
    }),
  );

  it(
    "tries another directory if nodes cannot be opened",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { stdout, stderr } = inNamespace(
        scratch,
        `${TMPFS_DEV}; mount -t tmpfs -o nodev run /run; mount --rbind /tmp /tmp; mount -o remount,bind,ro /tmp`,
        `const device = await attach(loopdev.openMemory(4096), { minor: ${own.minor} });
         console.log(device.path);
         loopdev.openFile(device.path).close();
         await device.detach();
         const { listDirectory } = await import(new URL("lib/sys/sysfs.ts", "${
          import.meta.resolve("../../")
        }"));
         console.log(["/run", "/dev"].flatMap(listDirectory).filter((name) => name.includes("loopdev")));`,
      );
      const expected = new RegExp(
        `^/dev/loopdev-[0-9a-f-]{36}/${own.name}\\n\\[\\]\\n$`,
      );
      assertMatch(stdout, expected, stderr);
    }),
  );

  it(
    "is asked which file it has, so that find() takes no other file of the same name",
    withScratch(async (scratch) => {
      const directory = `${scratch.path}/m`;
      Deno.mkdirSync(directory);
      const path = scratch.image(1 << 20, "m/disk.img");
      await using theirs = await attach(path);
      const look = (setup: string) =>
        inNamespace(
          scratch,
          `${TMPFS_DEV}; ${setup}`,
          `console.log(loopdev.find("${path}").length);`,
        );
      assertEquals(look("").stdout, "1\n");
      const another =
        `mount -t tmpfs m '${directory}'; truncate -s 1M '${path}'`;
      assertEquals(look(another), { code: 0, stdout: "0\n", stderr: "" });
      await theirs.detach();
    }),
  );

  it(
    "leaves the temporary node of another process alone when a device is detached",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const node = `/run/.loopdev-${crypto.randomUUID()}/${own.name}`;
      const { stdout, stderr } = inNamespace(
        scratch,
        `${TMPFS_DEV}; mount -t tmpfs run /run
         mkdir -m 700 $(dirname ${node}); mknod ${node} b 7 1`,
        `const device = await attach(loopdev.openMemory(4096), { minor: ${own.minor} });
         await device.persist();
         await loopdev.detach(${own.minor});
         loopdev.openDirectory("${node.replace(/\/[^/]*$/, "")}").close();
         const { statAt } = await import("${PROJECT}/lib/sys/stat.ts");
         const { AT_FDCWD, cString } = await import("${PROJECT}/lib/sys/libc.ts");
         console.log(typeof statAt(AT_FDCWD, cString("${node}")));`,
      );
      assertEquals(stdout, "object\n", stderr);
    }),
  );

  it(
    "lets a command of loopdev run write to the device, not to a file of its name",
    withScratch((scratch) => {
      const image = scratch.image();
      const { code, stderr } = run(
        "unshare",
        ..."--mount --propagation private bash -c".split(" "),
        `set -e; ${LOOPDEV}; ${TMPFS_DEV}
         loopdev run '${image}' -- sh -c 'printf hello > $LOOPDEV'`,
      );
      assertEquals(code, 0, stderr);
      const bytes = Deno.readFileSync(image).subarray(0, 5);
      assertEquals(new TextDecoder().decode(bytes), "hello");
    }),
  );

  it(
    "leaves nodes after persist(), each removed by detach() of its device",
    withScratch((scratch) => {
      using own = new OwnDevice();
      using other = new OwnDevice();
      const { stdout, stderr } = inNamespace(
        scratch,
        TMPFS_DEV,
        `const { openFile, openMemory } = loopdev;
         const exists = (path) => {
           try {
             openFile(path).close();
             return true;
           } catch {
             return false;
           }
         };
         const persisted = async (minor) =>
           await (await attach(openMemory(4096), { minor })).persist();
         const paths = [await persisted(${own.minor}), await persisted(${other.minor})];
         for (const path of paths) {
           await detach(path);
           console.log(paths.map(exists).join(" "));
         }`,
      );
      assertEquals(stdout, "false true\nfalse false\n", stderr);
    }),
  );

  for (
    const [what, setup] of [
      ["no node of the disk", ""],
      ["one of the disk", "mknod /dev/$name b 7 $minor"],
    ] as const
  ) {
    it(
      `has nodes of the partitions too where /dev gets none, with ${what}`,
      withScratch((scratch) => {
        using own = new OwnDevice();
        const image = partitioned(scratch);
        const { stdout, stderr } = inNamespace(
          scratch,
          `${TMPFS_DEV}; mount -t tmpfs run /run
           name=${own.name} minor=${own.minor}; ${setup}`,
          `const { partitions } = loopdev;
           const minor = ${own.minor};
           const open = (found) => {
             for (const { path } of found) loopdev.openFile(path).close();
             return found.length;
           };
           await tell(async () => {
             await using device = await attach("${image}", { minor });
             return open(await device.partitions());
           });
           const { listDirectory } = await import("${PROJECT}/lib/sys/sysfs.ts");
           const raced = await attach("${image}", { minor });
           const found = raced.partitions().catch(() => {});
           await Promise.all([found, raced.detach()]);
           console.log(listDirectory("/run").length);
           const device = await attach("${image}", { minor });
           await device.persist();
           await tell(async () => open(await partitions(minor)));
           const count = listDirectory("/run").length;
           await tell(async () => open(await partitions(minor)));
           console.log(listDirectory("/run").length - count);
           await detach(minor);
           console.log(listDirectory("/run").length);`,
        );
        assertEquals(stdout, "ok 2\n0\nok 2\nok 2\n0\n0\n", stderr);
      }),
    );
  }

  it(
    "leaves no node at detach() that another call created or replaced",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { stdout, stderr } = inNamespace(
        scratch,
        `${TMPFS_DEV}; mount -t tmpfs run /run`,
        `const { partitions } = loopdev;
         const { addPartition, deletePartition } = await import("${PROJECT}/lib/sys/blk_uapi.ts");
         const { listDirectory } = await import("${PROJECT}/lib/sys/sysfs.ts");
         const options = { minor: ${own.minor} };
         const image = "${partitioned(scratch)}";
         // Other processes cannot create nodes in a directory of the attachment.
         const device = await attach(image, options);
         const [first, second] = await partitions(device.minor);
         await device.detach();
         console.log(listDirectory("/run").length);
         // The numbers of the partitions change, so their nodes are replaced.
         const other = await attach(image, options);
         await other.partitions();
         const { fd } = other.loop;
         deletePartition(fd, 1);
         deletePartition(fd, 2);
         addPartition(fd, second);
         addPartition(fd, first);
         await partitions(other.minor);
         await tell(() => other.detach());
         console.log(listDirectory("/run").length);`,
      );
      assertEquals(stdout, "0\nok null\n0\n", stderr);
    }),
  );

  it(
    "is named as the cause where no node of a partition can be created",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { stdout, stderr } = inNamespace(
        scratch,
        `${TMPFS_DEV}; mknod ${own.path} b 7 ${own.minor}; mknod /dev/loop-control c 10 237`,
        `await tell(async () => {
           await using device = await attach("${
          partitioned(scratch)
        }", { minor: ${own.minor} });
           await device.partitions();
         });`,
        { user: "setpriv --bounding-set -mknod" },
      );
      assertMatch(
        stdout,
        /^LoopError ENOENT Cannot open "\/dev\/loop\d+p1": .* nodes do not appear in \/dev here.*\(EPERM\)\n$/,
        stderr,
      );
    }),
  );

  it(
    "serves loopdev partitions, show, mount and unmount",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const image = partitioned(scratch);
      // On a busy machine, `show` warns about processes that wait for a disk.
      const { stdout, stderr } = run(
        "unshare",
        ..."--mount --propagation private bash -c".split(" "),
        `set -e; ${LOOPDEV}; ${TMPFS_DEV}; mount -t tmpfs run /run; mkdir '${scratch.path}/mnt'
         loopdev attach --device ${own.minor} '${image}' > /dev/null
         mkfs.ext4 -q $(loopdev partitions ${own.minor} --json | sed -n 's/.*"path": "\\(.*p1\\)".*/\\1/p')
         loopdev show ${own.name} 2> /dev/null | grep -c '/run/.*p1 .*ext4'
         loopdev mount ${own.name} '${scratch.path}/mnt' > /dev/null
         loopdev unmount '${scratch.path}/mnt'
         loopdev detach ${own.minor}
         loopdev mount -p 1 --device ${own.minor} '${image}' '${scratch.path}/mnt' > /dev/null
         loopdev unmount '${scratch.path}/mnt'
         ls /run`,
      );
      assertEquals({ stdout, stderr }, { stdout: "1\n", stderr: "" });
    }),
  );

  it(
    "leaves the node while the device is attached, and doctor() reports it once the device is free",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const image = scratch.image();
      const { stdout, stderr } = run(
        "unshare",
        ..."--mount --propagation private bash -c".split(" "),
        `set -e; ${LOOPDEV}; ${TMPFS_DEV}
         loopdev attach --device ${own.minor} '${image}'`,
      );
      const path = stdout.trim();
      const directory = path.replace(/\/[^/]*$/, "");
      try {
        assert(Deno.lstatSync(path).isBlockDevice, stderr);
        assertEquals(Deno.lstatSync(directory).mode! & 0o7777, 0o700);
        const left = async () =>
          (await doctor()).filter(({ status, remedy }) =>
            status === "warning" && remedy?.includes(directory)
          ).length;
        assertEquals(await left(), 0);
        runOk("losetup", "-d", path);
        assert(isSoon(() => !own.isBound));
        assertEquals(await left(), 1);
      } finally {
        Deno.removeSync(directory, { recursive: true });
      }
    }),
  );
});
