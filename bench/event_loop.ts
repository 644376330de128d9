/**
 * Measures for how long calls block the event loop: the longest pause between two ticks
 * of a timer of one millisecond, while much is dirty, open, mounted or partitioned.
 */
import {
  attach,
  type Attachment,
  holders,
  Loop,
  LoopBusyError,
  type Mount,
  mount,
} from "@loopdev/loopdev";
import { summary } from "./measure.ts";
import type { Findings, Row } from "./result.ts";
import type { World } from "./world.ts";

const MiB = 2 ** 20;
const MICROSECONDS = 1000;

/** Measures the longest pause during an operation. */
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

/**
 * Starts a C program that runs until it is disposed of, and waits for its first output.
 */
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

/** Writes to random places of a device without pausing. */
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

/**
 * Creates processes with ten descriptors each, and mounts with long names in their own
 * namespace.
 */
const CROWD = `
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int count, char **arguments) {
  int processes = atoi(arguments[1]), mounts = atoi(arguments[2]);
  for (int process = 0; process < processes; process++) {
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
  for (int number = 0; number < mounts; number++) {
    sprintf(name + 180, "%d", number);
    mkdir(name, 0755);
    mount("source", name, 0, MS_BIND, 0);
  }
  puts("ready"); fflush(stdout);
  pause();
}`;

/** Amounts of work that could block the event loop. */
interface Sizes {
  /** Unwritten bytes when a file is attached. */
  readonly file: number;
  /** Unwritten bytes when a device is detached. */
  readonly device: number;
  readonly processes: number;
  readonly mounts: number;
  readonly partitions: number;
}

const FULL: Sizes = {
  file: 4096 * MiB,
  device: 1024 * MiB,
  processes: 10_000,
  mounts: 40_000,
  partitions: 250,
};
const QUICK: Sizes = {
  file: 256 * MiB,
  device: 128 * MiB,
  processes: 500,
  mounts: 2000,
  partitions: 60,
};

/** Measures the longest pauses. */
export async function eventLoopCase(world: World): Promise<Findings> {
  const rows: Row[] = [];
  const add = async (
    title: string,
    work: () => Promise<unknown>,
  ): Promise<void> => {
    const pause = await pauseOf(work);
    const samples = { loopdev: summary([pause * MICROSECONDS]) };
    rows.push({ id: `stop ${title}`, title, unit: "µs", samples });
  };
  const sizes = world.quick ? QUICK : FULL;
  const { path } = world.disk;
  const file = `${path}/stop.img`;
  await measureDirty(add, path, file, sizes);
  await measureMount(add, file, sizes);
  await measureCrowd(add, path, file, sizes);
  await measureMounts(add, path, file, sizes);
  await measurePartitions(add, file, sizes);
  return { rows };
}

type Add = (what: string, work: () => Promise<unknown>) => Promise<void>;

async function measureDirty(
  add: Add,
  directory: string,
  file: string,
  sizes: Sizes,
): Promise<void> {
  await fill(file, sizes.file);
  let device: Attachment | undefined;
  const inFile = `${sizes.file / MiB} MiB unwritten`;
  await add(
    `attach of a file with ${inFile}`,
    async () => device = await attach(file),
  );
  await device!.detach();
  const inDevice = `${sizes.device / MiB} MiB unwritten`;
  for (const autoclear of [true, false]) {
    const one = await attach(file, { autoclear });
    await fill(one.path, sizes.device);
    const what = autoclear ? "" : ", without autoclear";
    await add(`detach with ${inDevice}${what}`, () => one.detach());
  }
  {
    const one = await attach(file);
    const writer = await background(directory, WRITER, one.path);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await add(
      "busy detach beside a writer",
      () => one.detach({ timeout: 100 }).catch(onlyBusy),
    );
    await writer[Symbol.asyncDispose]();
    await one.detach();
  }
  const one = await attach(file);
  await fill(one.path, sizes.device);
  await add(`persist with ${inDevice}`, () => one.persist());
  await one.detach();
}

async function measureMount(
  add: Add,
  file: string,
  { device }: Sizes,
): Promise<void> {
  await run("mkfs.ext4", "-q", "-F", file);
  let mounted: Mount | undefined;
  await add("mount", async () => mounted = await mount(file));
  await fill(`${mounted!.path}/file`, device);
  await add(
    `unmount with ${device / MiB} MiB unwritten`,
    () => mounted!.unmount(),
  );
}

async function measureCrowd(
  add: Add,
  directory: string,
  file: string,
  { processes, mounts }: Sizes,
): Promise<void> {
  await using one = await attach(file);
  using _other = new Loop(one.minor, { readOnly: true });
  await using _crowd = await background(
    directory,
    CROWD,
    String(processes),
    String(mounts),
  );
  const crowd = `beside ${processes} processes and ${mounts} mounts`;
  await add(`holders ${crowd}`, () => holders(one));
  await add(
    `busy detach ${crowd}`,
    () => one.detach({ timeout: 100 }).catch(onlyBusy),
  );
}

async function measureMounts(
  add: Add,
  directory: string,
  file: string,
  { device }: Sizes,
): Promise<void> {
  await run("mkfs.ext4", "-q", "-F", file);
  const target = `${directory}/mnt`;
  await Deno.mkdir(target);
  for (const options of [{}, { target }]) {
    const disk = await mount(file, options);
    await fill(`${disk.path}/file`, device);
    const what = options.target === undefined ? "a private mount" : "a target";
    await add(
      `unmount of ${what} with ${device / MiB} MiB unwritten`,
      () => disk.unmount(),
    );
  }
}

async function measurePartitions(
  add: Add,
  file: string,
  { partitions }: Sizes,
): Promise<void> {
  await Deno.truncate(file, (partitions + 8) * MiB);
  const script = `label: gpt\ntable-length: ${partitions}\n${
    "size=1M\n".repeat(partitions)
  }`;
  await run("sh", "-c", `printf '${script}' | sfdisk -q ${file}`);
  await using one = await attach(file);
  await add(`partitions of ${partitions}`, () => one.partitions());
}

function onlyBusy(error: unknown): void {
  if (!(error instanceof LoopBusyError)) throw error;
}
