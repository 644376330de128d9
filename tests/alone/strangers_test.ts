import { attach, detach, find, holders, list } from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  cli,
  isSoon,
  run,
  runOk,
  Scratch,
  Undo,
  withScratch,
} from "../device/support.ts";
import { alone, compile, FileServer, inChild, Program } from "./support.ts";

/**
 * Starts a process that has a file of the server open and mapped, and works in its
 * directory.
 */
function user(file: string): Disposable {
  const child = new Deno.Command("python3", {
    args: [
      "-c",
      `import mmap, os, time
file = open("${file}", "rb")
map = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
os.chdir(os.path.dirname("${file}"))
time.sleep(1000)`,
    ],
    stdout: "null",
  }).spawn();
  assert(
    isSoon(() =>
      run("readlink", `/proc/${child.pid}/cwd`).stdout.trim() ===
        file.replace(/\/[^/]*$/, "")
    ),
  );
  return {
    [Symbol.dispose]: () => child.kill("SIGKILL"),
  };
}

/**
 * Attaches a file of the server to a device, which is detached once the server has
 * ended.
 */
function attached(path: string): { path: string } & Disposable {
  const device = runOk("losetup", "--read-only", "--find", "--show", path);
  return {
    path: device,
    [Symbol.dispose]: () => {
      run("losetup", "--detach", device);
    },
  };
}

/** Mounts the file system that lists FUSE servers, as systemd does. */
function showConnections(): Disposable {
  const path = "/sys/fs/fuse/connections";
  const isMounted = run("mountpoint", path).code === 0;
  if (!isMounted) runOk("mount", "-t", "fusectl", "fusectl", path);
  return new Undo(() => {
    if (!isMounted) runOk("umount", path);
  });
}

for (const how of ["silent", "ETIMEDOUT"] as const) {
  describe(`a file server that is ${how}`, alone, () => {
    it(
      "blocks neither holders() nor a busy detach() while a process uses it",
      withScratch(async (scratch) => {
        await using server = await FileServer.start(`${scratch.path}/mnt`);
        using _user = user(server.file);
        await server.stop(how);
        assertEquals(
          inChild(`
            using memory = openMemory(1 << 20);
            const device = await attach(memory);
            const { holders: found } = await holders(device);
            console.log(found.filter(({ pid }) => pid === Deno.pid).length);
            {
              using other = Loop.open(device.path);
              const error = await device.detach({ timeout: 10 }).catch((error) => error);
              console.log(error instanceof LoopBusyError);
            }
            await device.detach();`),
          "1\ntrue",
        );
        await using own = await attach(scratch.image());
        assertEquals(cli("show", own.path).code, 0);
      }),
    );

    it(
      "blocks neither list() nor find() nor attach() while a device has its file",
      withScratch(async (scratch) => {
        const path = `${scratch.path}/mnt`;
        await using stack = new AsyncDisposableStack();
        const odd: Disposable[] = [];
        stack.defer(() => odd.forEach((device) => device[Symbol.dispose]()));
        const server = stack.use(await FileServer.start(path));
        odd.push(attached(server.file));
        odd.push(attached(`${server.file} (deleted)`));
        stack.use(showConnections());
        const hidden = stack.use(await FileServer.start(`${path}-hidden`));
        odd.push(attached(hidden.file));
        const image = scratch.image();
        await server.stop(how);
        await hidden.stop(how);
        runOk("umount", "--lazy", `${path}-hidden`);
        assertEquals(
          inChild(`
            const device = await attach("${image}", { overlap: "refuse" });
            const isOwn = ({ path }) => path === device.path;
            console.log(list().filter(isOwn).length);
            console.log(find("${image}").filter(isOwn).length);
            console.log(list().filter(({ backingFile }) => backingFile.startsWith("${path}")).length);
            console.log((await holders(device)).holders.filter(({ pid }) => pid === Deno.pid).length);
            await detach(device);`),
          "1\n1\n2\n1",
        );
      }),
    );
  });
}

/** Maps a file, dirties it, and unmaps it on request, which waits for the server. */
const UNMAPPER = `
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
static void go(int signal) {}
int main(int count, char **argument) {
  signal(SIGUSR1, go);
  int fd = open(argument[1], O_RDWR);
  char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) return 1;
  page[0] = 1;
  puts("ready");
  fflush(stdout);
  pause();
  mmap(page, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  pause();
}`;

describe(
  "a process that waits for a file server with its memory locked",
  alone,
  () => {
    it(
      "blocks neither holders() nor the exit of the program",
      withScratch(async (scratch) => {
        const program = compile(scratch.path, UNMAPPER);
        const server = await FileServer.start(`${scratch.path}/mnt`);
        await using stack = new AsyncDisposableStack();
        const hung = stack.use(await Program.start(program, server.file));
        stack.use(server); // disposed of first, which ends the waiting
        await server.stop("silent");
        hung.kill("SIGUSR1");
        const stat = `/proc/${hung.pid}/stat`;
        assert(isSoon(() => /\) D /.test(Deno.readTextFileSync(stat))));
        assertEquals(
          inChild(`
          using memory = openMemory(1 << 20);
          await using device = await attach(memory);
          const { holders: found, complete } = await holders(device);
          console.log(found.length, complete);`),
          "1 false",
        );
      }),
    );
  },
);

describe("a file server that only its user may use", alone, () => {
  it(
    "does not make holders() incomplete",
    withScratch(async (scratch) => {
      Deno.chmodSync(scratch.path, 0o755);
      await using server = await FileServer.startFor(
        NOBODY,
        `${scratch.path}/mnt`,
      );
      await using own = await attach(scratch.image());
      const isComplete = async () => (await holders(own)).complete;
      const before = await isComplete();
      await using _user = await Program.start(
        "setpriv",
        `--reuid=${NOBODY}`,
        "--clear-groups",
        "bash",
        "-c",
        `cd '${scratch.path}/mnt' && exec 9<'${server.file}' && echo ready && exec sleep 1000`,
      );
      assertEquals(run("ls", server.file).code, 2, "root may not use it");
      assertEquals([before, await isComplete()], [true, true]);
    }),
  );
});

/** An unprivileged user. */
const NOBODY = 65534;

describe("find()", alone, () => {
  it("finds only the devices of the given file on a file server", async () => {
    using scratch = new Scratch();
    await using stack = new AsyncDisposableStack();
    const server = stack.use(await FileServer.start(`${scratch.path}/mnt`));
    using device = attached(server.file);
    const image = scratch.image();
    await using own = await attach(image);
    assertEquals(find(server.file).map(({ path }) => path), [device.path]);
    assertEquals(find(image).map(({ path }) => path), [own.path]);
    const listed = list().find(({ path }) => path === device.path);
    assertEquals([listed?.backingFile, listed?.deleted], [server.file, false]);
    await detach(device.path);
    assertEquals(find(server.file), []);
    assertMatch(server.file, /disk\.img$/);
  });
});
