/**
 * `kill -9` at random moments of a mount: nothing stays, and what was written for good is
 * there. `LOOPDEV_KILLS=200` does it so often.
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

/** A place with an image, and a directory to mount it on. */
class Place implements Disposable {
  readonly #scratch = new Scratch();
  readonly #empty = `${this.#scratch.path}/empty.img`;
  readonly image = `${this.#scratch.path}/disk.img`;
  readonly directory = `${this.#scratch.path}/mnt`;

  constructor() {
    Deno.mkdirSync(this.directory);
    runOk("mkfs.ext4", "-q", "-F", this.#scratch.image(16 << 20, "empty.img"));
  }

  /** A fresh file system. */
  renew(): void {
    Deno.copyFileSync(this.#empty, this.image);
  }

  /** Nothing is left, the file system is whole, and these files are. */
  check(written: number[], content: (number: number) => Uint8Array): void {
    const isFree = () => this.#scratch.devices().length === 0;
    assert(isSoon(isFree), `${this.#scratch.devices()} is left`);
    const mounts = Deno.readTextFileSync("/proc/self/mountinfo");
    assert(!mounts.includes(this.#scratch.path), "a mount is left");
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

/** A process that prints what it has written. */
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
      // it has ended
    }
  }

  /** Waits for its end and that of its children, and returns the files that it has written. */
  async ended(): Promise<number[]> {
    await this.#process.status;
    return await this.#written;
  }
}

async function pause(milliseconds: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Measures how long an undisturbed run takes, in milliseconds. */
async function durationOf(args: string[], place: Place): Promise<number> {
  place.renew();
  const start = performance.now();
  const written = await new Writer(args).ended();
  assertEquals(written.length, FILES);
  return performance.now() - start;
}

describe(`kill -9 at ${RUNS} moments of a mount`, onDevices, () => {
  it("of mount(), without target", async () => {
    using place = new Place();
    const script = new URL("mounter.ts", import.meta.url).pathname;
    const args = [script, place.image, `${FILES}`];
    const duration = await durationOf(args, place);
    let total = 0;
    for (let run = 0; run < RUNS; run++) {
      place.renew();
      const writer = new Writer(args);
      await pause(Math.random() * duration);
      writer.kill();
      const written = await writer.ended();
      total += written.length;
      place.check(written, contentOf);
    }
    console.log(`${RUNS} times killed: ${total} files written before`);
    assert(total > 0);
  });

  it("of loopdev run --mount, and of its command", async () => {
    using place = new Place();
    const script =
      `cd "$0"; i=0; while [ $i -lt ${FILES} ]; do printf %08192d $i > $i; sync $i; echo $i; i=$((i + 1)); done`;
    const args = [CLI, "run", "--mount", place.directory, place.image, "--"]
      .concat(["sh", "-c", script, place.directory]);
    const content = (number: number) =>
      new TextEncoder().encode(`${number}`.padStart(8192, "0"));
    const duration = await durationOf(args, place);
    let total = 0;
    for (let run = 0; run < RUNS; run++) {
      place.renew();
      const writer = new Writer(args);
      await pause(Math.random() * duration);
      if (run % 2 === 0) writer.kill();
      else killChildren(writer.pid);
      // The command goes on when the program that started it is killed.
      const written = await writer.ended();
      total += written.length;
      place.check(written, content);
    }
    console.log(`${RUNS} times killed: ${total} files written before`);
    assert(total > 0);
  });
});

/** Kills a process, unless it has ended just now. */
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
    // it has ended
  }
  for (const child of children.split(" ")) {
    if (child !== "") kill(Number(child));
  }
}
