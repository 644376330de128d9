/**
 * Sends `kill -9` at random moments of a mount. No mount and no device may stay, and data
 * that was written back must be there. `LOOPDEV_KILLS=200` sets the number of runs.
 */
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CLI,
  isSoon,
  lines,
  mounted,
  onDevices,
  run,
  runOk,
  Scratch,
} from "../device/support.ts";
import { contentOf } from "./mounter.ts";

const RUNS = Number(Deno.env.get("LOOPDEV_KILLS") ?? 20);
const FILES = 50;

/** An image, and a directory to mount it on. */
class Place implements Disposable {
  readonly #scratch = new Scratch();
  readonly #empty = `${this.#scratch.path}/empty.img`;
  readonly image = `${this.#scratch.path}/disk.img`;
  readonly directory = `${this.#scratch.path}/mnt`;

  constructor() {
    Deno.mkdirSync(this.directory);
    runOk("mkfs.ext4", "-q", "-F", this.#scratch.image(16 << 20, "empty.img"));
  }

  /** Replaces the image with an empty file system. */
  renew(): void {
    Deno.copyFileSync(this.#empty, this.image);
  }

  /** Checks that no device or mount is left, and that the file system and the written files are intact. */
  check(written: number[], content: (number: number) => Uint8Array): void {
    const isFree = () => this.#scratch.devices().length === 0;
    assert(isSoon(isFree), `${this.#scratch.devices()} is left`);
    const mounts = Deno.readTextFileSync("/proc/self/mountinfo");
    assert(!mounts.includes(this.#scratch.path), "a mount is left");
    // A kill in the middle of a mount (EINTR) leaves a journal that has to be replayed.
    const replay = run("e2fsck", "-p", "-E", "journal_only", this.image);
    assert(replay.code <= 1, replay.stdout);
    const { code, stdout } = run("e2fsck", "-f", "-n", this.image);
    assertEquals(code, 0, stdout);
    {
      using _mount = mounted("-o", "loop,ro", this.image, this.directory);
      for (const number of written) {
        const file = Deno.readFileSync(`${this.directory}/${number}`);
        assertEquals(file, content(number), `file ${number}`);
      }
    }
    assert(isSoon(isFree));
  }

  [Symbol.dispose](): void {
    this.#scratch[Symbol.dispose]();
  }
}

/** A process that prints the numbers of the files that it has written. */
class Writer {
  readonly #process: Deno.ChildProcess;
  readonly #written: Promise<number[]>;

  constructor(args: string[]) {
    this.#process = new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", "--no-check", "--allow-all", ...args],
      stdout: "piped",
      stderr: "null",
    }).spawn();
    this.#written = this.#read();
  }

  get pid(): number {
    return this.#process.pid;
  }

  async #read(): Promise<number[]> {
    const written: number[] = [];
    for await (const line of lines(this.#process.stdout)) {
      written.push(Number(line));
    }
    return written;
  }

  kill(): void {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // The process has ended.
    }
  }

  /** Waits until the process and its children end. Returns the files that they have written. */
  async ended(): Promise<number[]> {
    await this.#process.status;
    return await this.#written;
  }
}

async function pause(milliseconds: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Measures the duration of an undisturbed run, in milliseconds. */
async function durationOf(args: string[], place: Place): Promise<number> {
  place.renew();
  const start = performance.now();
  const written = await new Writer(args).ended();
  assertEquals(written.length, FILES);
  return performance.now() - start;
}

describe(`kill -9 at ${RUNS} moments of a mount`, onDevices, () => {
  it("leaves no device of mount() without target, and loses no synced file", async () => {
    using place = new Place();
    const script = new URL("mounter.ts", import.meta.url).pathname;
    const args = [script, place.image, `${FILES}`];
    await killAtRandom(place, args, contentOf, (writer) => writer.kill());
  });

  it("leaves no device of loopdev run --mount or its command, and loses no synced file", async () => {
    using place = new Place();
    const script =
      `cd "$0"; i=0; while [ $i -lt ${FILES} ]; do printf %08192d $i > $i; sync $i; echo $i; i=$((i + 1)); done`;
    const args = [CLI, "run", "--mount", place.directory, place.image, "--"]
      .concat(["sh", "-c", script, place.directory]);
    const content = (number: number) =>
      new TextEncoder().encode(`${number}`.padStart(8192, "0"));
    await killAtRandom(place, args, content, (writer, run) => {
      if (run % 2 === 0) writer.kill();
      else killChildren(writer.pid);
    });
  });
});

/** Kills a writer at random moments, and checks the image after each. */
async function killAtRandom(
  place: Place,
  args: string[],
  content: (number: number) => Uint8Array,
  kill: (writer: Writer, run: number) => void,
): Promise<void> {
  const duration = await durationOf(args, place);
  let total = 0;
  for (let run = 0; run < RUNS; run++) {
    place.renew();
    const writer = new Writer(args);
    await pause(Math.random() * duration);
    kill(writer, run);
    // A command keeps running after the program that started it is killed.
    const written = await writer.ended();
    total += written.length;
    place.check(written, content);
  }
  console.log(`${RUNS} times killed: ${total} files written before`);
  assert(total > 0);
}

/** Kills a process, unless it has already ended. */
function kill(pid: number): void {
  try {
    Deno.kill(pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Kills the processes that a process has started. */
function killChildren(pid: number): void {
  let children = "";
  try {
    children = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`);
  } catch {
    // The process has ended.
  }
  for (const child of children.split(" ")) {
    if (child !== "") kill(Number(child));
  }
}
