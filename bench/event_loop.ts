/**
 * How long calls stop the event loop: the longest pause between two turns of a timer that
 * wants one every millisecond, while much is dirty, open, mounted or partitioned. As root,
 * with gcc, mkfs.ext4 and sfdisk:
 *
 *     deno task bench:event-loop [DIRECTORY]
 */
import {
  attach,
  type Attachment,
  holders,
  Loop,
  LoopBusyError,
  mount,
} from "@loopdev/loopdev";

const MiB = 2 ** 20;
const GiB = 2 ** 30;
/** What no call may exceed, in milliseconds. */
const LIMIT = 50;

/** Measures the longest pause while something is done. */
async function pauseOf(work: () => Promise<unknown>): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 50));
  let last = performance.now();
  let longest = 0;
  const look = (): void => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  };
  const timer = setInterval(look, 1);
  await work();
  clearInterval(timer);
  look();
  return longest;
}

async function run(command: string, ...args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(command, { args })
    .output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

async function fill(path: string, bytes: number): Promise<void> {
  const count = `count=${bytes / MiB}`;
  const options = ["bs=1M", count, "conv=notrunc", "status=none"];
  await run("dd", "if=/dev/zero", `of=${path}`, ...options);
}

/** A C program that runs until it is disposed of, ready when it has printed something. */
async function background(
  directory: string,
  source: string,
  ...args: string[]
): Promise<AsyncDisposable> {
  const program = `${directory}/program`;
  await Deno.writeTextFile(`${program}.c`, source);
  await run("gcc", "-O2", "-w", "-o", program, `${program}.c`);
  const child = new Deno.Command(program, { args, stdout: "piped" }).spawn();
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

/** Writes to random places of a device without pause. */
const WRITER = `
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **arguments) {
  static char bytes[65536];
  int fd = open(arguments[1], O_WRONLY);
  puts("ready"); fflush(stdout);
  for (;;) pwrite(fd, bytes, sizeof bytes, (random() % 16384) * 65536L);
}`;

/** Processes with ten descriptors each, and mounts with long names in a namespace of their own. */
const CROWD = `
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int count, char **arguments) {
  for (int process = 0; process < 10000; process++) {
    if (fork() != 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int more = 0; more < 7; more++) dup(0);
    for (;;) pause();
  }
  unshare(CLONE_NEWNS);
  mount("none", "/", 0, MS_REC | MS_PRIVATE, 0);
  mount("none", "/mnt", "tmpfs", 0, 0);
  chdir("/mnt");
  char name[200];
  memset(name, 'n', 180);
  mkdir("source", 0755);
  for (int number = 0; number < 40000; number++) {
    sprintf(name + 180, "%d", number);
    mkdir(name, 0755);
    mount("source", name, 0, MS_BIND, 0);
  }
  puts("ready"); fflush(stdout);
  pause();
}`;

async function measure(directory: string): Promise<Map<string, number>> {
  const found = new Map<string, number>();
  const add = async (
    what: string,
    work: () => Promise<unknown>,
  ): Promise<void> => {
    found.set(what, await pauseOf(work));
  };
  const path = `${directory}/disk.img`;

  await fill(path, 4 * GiB);
  let device: Attachment | undefined;
  await add(
    "attach of a file with 4 GiB unwritten",
    async () => device = await attach(path),
  );
  await device!.detach();

  for (const autoclear of [true, false]) {
    const one = await attach(path, { autoclear });
    await fill(one.path, GiB);
    const what = autoclear ? "" : ", without autoclear";
    await add(`detach with 1 GiB unwritten${what}`, () => one.detach());
  }
  {
    const one = await attach(path);
    const writer = await background(directory, WRITER, one.path);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await add(
      "busy detach beside a writer",
      () => one.detach({ timeout: 100 }).catch(onlyBusy),
    );
    await writer[Symbol.asyncDispose]();
    await one.detach();
  }
  {
    const one = await attach(path);
    await fill(one.path, GiB);
    await add("persist with 1 GiB unwritten", () => one.persist());
    await one.detach();
  }
  {
    await using one = await attach(path);
    using _other = new Loop(one.minor, { readOnly: true });
    await using _crowd = await background(directory, CROWD);
    const crowd = "beside 10 000 processes and 40 000 mounts";
    await add(`holders ${crowd}`, () => holders(one));
    await add(
      `busy detach ${crowd}`,
      () => one.detach({ timeout: 100 }).catch(onlyBusy),
    );
  }
  await run("mkfs.ext4", "-q", "-F", path);
  const target = `${directory}/mnt`;
  await Deno.mkdir(target);
  for (const options of [{}, { target }]) {
    const disk = await mount(path, options);
    await fill(`${disk.path}/file`, GiB);
    const what = "target" in options ? "a target" : "a private mount";
    await add(`unmount of ${what} with 1 GiB unwritten`, () => disk.unmount());
  }
  {
    const script = `label: gpt\ntable-length: 250\n${"size=1M\n".repeat(250)}`;
    await run("sh", "-c", `printf '${script}' | sfdisk -q ${path}`);
    await using one = await attach(path);
    await add("partitions of 250", () => one.partitions());
  }
  return found;
}

function onlyBusy(error: unknown): void {
  if (!(error instanceof LoopBusyError)) throw error;
}

const directory = await Deno.makeTempDir({ dir: Deno.args[0] ?? "/var/tmp" });
try {
  const found = await measure(directory);
  for (const [what, pause] of found) {
    console.log(`${what.padEnd(62)} ${pause.toFixed(0).padStart(5)} ms`);
  }
  const isMet = [...found.values()].every((pause) => pause <= LIMIT);
  console.log(isMet ? `all at most ${LIMIT} ms` : `more than ${LIMIT} ms`);
} finally {
  await Deno.remove(directory, { recursive: true });
}
