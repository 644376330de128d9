import {
  attach,
  FileDescriptor,
  holders,
  Loop,
  LoopBusyError,
  mount,
  openMemory,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { PrivateMount } from "../../lib/mounting/private_mount.ts";
import {
  mounted,
  runOk,
  type Scratch,
  withScratch,
} from "../device/support.ts";
import { alone, compile, Program } from "./support.ts";

const MiB = 1 << 20;

/** Upper limit for a search, whatever other users do, in milliseconds. */
const DEADLINE = 20_000;

/** Returns the result of an operation, and how often other work ran during it. */
async function beside<T>(work: () => Promise<T>): Promise<[T, number]> {
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  try {
    const end = performance.now() + DEADLINE;
    const result = await work();
    assert(performance.now() < end, "it takes too long");
    return [result, turns];
  } finally {
    clearInterval(timer);
  }
}

/** Runs a program as an unprivileged user in its own namespace. */
function unprivileged(program: string, ...args: string[]): Promise<Program> {
  return Program.start(
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    program,
    ...args,
  );
}

function directoryIn({ path }: Scratch): string {
  const directory = `${path}/flood`;
  Deno.mkdirSync(directory);
  return directory;
}

/** Mounts a directory many times, below directories with long names. */
const MOUNTS = `
#define _GNU_SOURCE
#include <sys/mount.h>
#include <sys/stat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int count = atoi(argv[2]), depth = atoi(argv[3]);
  char name[256];
  if (mount("none", argv[4], "tmpfs", 0, 0) || chdir(argv[4])) return 1;
  memset(name, '\\n', 255); name[255] = 0;
  for (int i = 0; i < depth; i++) if (mkdir(name, 0755) || chdir(name)) return 1;
  if (mkdir("source", 0755)) return 1;
  for (int i = 0; i < count; i++) {
    sprintf(name, "%d", i);
    if (mkdir(name, 0755) || mount(depth ? "source" : argv[1], name, 0, MS_BIND, 0)) return 1;
  }
  puts("ready"); fflush(stdout); pause();
}`;

const PROCESSES = `
#include <sys/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
  for (int i = atoi(argv[1]); i > 0; i--) {
    pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (int k = 0; k < 7; k++) dup(0);
      for (;;) pause();
    }
  }
  puts("ready"); fflush(stdout); pause();
}`;

describe("holders() and a busy detach()", alone, () => {
  it(
    "let other work continue beside 10 000 processes",
    withScratch(async (scratch) => {
      await using _flood = await Program.start(
        compile(scratch.path, PROCESSES),
        "10000",
      );
      using memory = openMemory(MiB);
      await using device = await attach(memory);
      using _other = Loop.open(device.path);
      const [found, turns] = await beside(() => holders(device));
      assert(found.holders.length >= 2);
      assert(turns > 10, `${turns}`);
      const [error] = await beside(() =>
        assertRejects(() => device.detach({ timeout: 10 }), LoopBusyError)
      );
      assert(error.holders.length >= 1);
    }),
  );

  it(
    "name processes beside 40 000 mounts of another user, and only some of the mounts",
    withScratch(async (scratch) => {
      Deno.chmodSync(scratch.path, 0o755);
      const image = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", image);
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      const device = await attach(image);
      {
        using _mount = mounted(device.path, mnt);
        await using _flood = await unprivileged(
          compile(scratch.path, MOUNTS),
          mnt,
          "40000",
          "0",
          directoryIn(scratch),
        );
        const [{ holders: found, complete }, turns] = await beside(() =>
          holders(device)
        );
        assertEquals(complete, false);
        assert(turns > 1, `${turns}`);
        assert(found.length < 2500, `${found.length}`);
        assert(found.some(({ kind }) => kind === "process"));
        assertEquals(found.filter((holder) => holder.kind === "mount")[0], {
          kind: "mount",
          device: device.path,
          target: mnt,
        });
        const error = await assertRejects(
          () => device.detach({ timeout: 10 }),
          LoopBusyError,
        );
        assert(error.message.length < 3000, `${error.message.length}`);
        assert(error.message.includes(`mounted on ${mnt};`), error.message);
      }
      await device.detach();
    }),
  );

  it(
    "are not blocked by a mount table of hundreds of megabytes",
    withScratch(async (scratch) => {
      Deno.chmodSync(scratch.path, 0o755);
      await using _flood = await unprivileged(
        compile(scratch.path, MOUNTS),
        "/",
        "25000",
        "14",
        directoryIn(scratch),
      );
      using memory = openMemory(MiB);
      await using device = await attach(memory);
      using _other = Loop.open(device.path);
      const [found, turns] = await beside(() => holders(device));
      assertEquals(found.complete, false);
      assert(turns > 10, `${turns}`);
      assert(found.holders.length >= 2);
      const [error] = await beside(() =>
        assertRejects(() => device.detach({ timeout: 10 }), LoopBusyError)
      );
      assert(error.holders.length >= 1);
    }),
  );
});

describe("unmount() with ifUnused", alone, () => {
  it(
    "lets other work continue beside 15 000 open files of this process",
    withScratch(async (scratch) => {
      const image = scratch.image(8 * MiB);
      runOk("mkfs.ext4", "-q", image);
      await using disk = await mount(image);
      const fd = Number(disk.path.split("/").at(-1));
      const place = new PrivateMount(new FileDescriptor(fd));
      const files = Array.from(
        { length: 15_000 },
        () => Deno.openSync("/dev/null"),
      );
      const [isUsed, turns] = await beside(() => place.isUsedHere());
      files.forEach((file) => file.close());
      assertEquals(isUsed, false);
      assert(turns > 0);
    }),
  );
});
