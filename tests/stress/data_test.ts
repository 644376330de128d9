import {
  attach,
  type Attachment,
  Loop,
  LOOP_CLR_FD,
  LoopControl,
  LoopError,
  openFile,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { ioctlValue } from "../../lib/sys/libc.ts";
import { lines, onDevices, Scratch, times } from "../device/support.ts";
import { BLOCK, BLOCKS, content } from "./writer.ts";

const RUNS = times(500);
/** Maximum number of runs until a write is lost, on any machine. */
const UNSAFE_RUNS = 500;

/** The writing process. */
class Writer implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #lines: AsyncGenerator<string>;

  constructor() {
    this.#process = new Deno.Command(Deno.execPath(), {
      args: [
        ..."run -q --no-check --allow-ffi".split(" "),
        new URL("writer.ts", import.meta.url).pathname,
      ],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#input = this.#process.stdin.getWriter();
    this.#lines = lines(this.#process.stdout);
  }

  /** Starts writing, and resolves after the first write. */
  async start(minor: number, run: number): Promise<void> {
    await this.#input.write(
      new TextEncoder().encode(`${minor} ${run}\n`),
    );
    assertEquals((await this.#lines.next()).value, "started");
  }

  /** Returns the writes that were complete when the device was detached. */
  async result(): Promise<Record<number, number | null>> {
    return JSON.parse((await this.#lines.next()).value);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close();
    await this.#process.status;
  }
}

/** Attaches a file, calls `write` while it is attached, and detaches. */
type Sequence = (
  path: string,
  write: (minor: number) => Promise<void>,
) => Promise<void>;

async function during(
  write: Parameters<Sequence>[1],
  { minor }: Attachment,
): Promise<void> {
  await write(minor);
}

const SEQUENCES: Record<string, Sequence> = {
  "Attachment.detach() with autoclear": async (path, write) => {
    const a = await attach(path);
    await during(write, a);
    await a.detach();
  },
  "Attachment.detach() without autoclear": async (path, write) => {
    const a = await attach(path, { autoclear: false });
    await during(write, a);
    await a.detach();
  },
  "Loop.clearFd() and close()": async (path, write) => {
    const loop = bindFree(path);
    const { minor } = loop;
    await write(minor);
    loop.clearFd();
    loop.close();
    await untilUnbound(minor);
  },
  "leaving an await using block by an exception": async (path, write) => {
    try {
      await using a = await attach(path);
      await during(write, a);
      throw new RangeError("on purpose");
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
    }
  },
};

/**
 * Loses data: `LOOP_CLR_FD` from the only descriptor, although everything was written
 * back just before.
 */
const unsafe: Sequence = async (path, write) => {
  const loop = bindFree(path);
  const { minor } = loop;
  await write(minor);
  loop.sync();
  ioctlValue(loop.fd, LOOP_CLR_FD, 0n);
  loop.close();
  await untilUnbound(minor);
};

/** Binds a file with the kernel layer. */
function bindFree(path: string): Loop {
  using control = new LoopControl();
  using file = openFile(path);
  for (;;) {
    const loop = new Loop(control.getUnbound());
    try {
      loop.configure(file.fd);
      return loop;
    } catch (error) {
      loop.close();
      if (!(error instanceof LoopError && error.code === "EBUSY")) throw error;
    }
  }
}

async function untilUnbound(minor: number): Promise<void> {
  for (;;) {
    try {
      Deno.statSync(`/sys/block/loop${minor}/loop`);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/**
 * Repeats a sequence. Returns the number of complete writes, and how many of them are
 * missing in the file.
 */
async function count(
  sequence: Sequence,
  runs: number,
  isEnough = (_missing: number) => false,
): Promise<{ complete: number; missing: number }> {
  using scratch = new Scratch();
  await using writer = new Writer();
  const path = scratch.image(BLOCKS * BLOCK);
  let [complete, missing] = [0, 0];
  for (let run = 1; run <= runs && !isEnough(missing); run++) {
    await sequence(path, async (minor) => {
      await writer.start(minor, run);
      const end = performance.now() + Math.random();
      while (performance.now() < end); // setTimeout is too coarse
    });
    const file = Deno.readFileSync(path);
    for (const [block, write] of Object.entries(await writer.result())) {
      if (write === null) continue;
      complete++;
      const at = Number(block) * BLOCK;
      const found = file.subarray(at, at + BLOCK);
      const expected = content(run, write);
      if (found.some((byte, index) => byte !== expected[index])) missing++;
    }
  }
  scratch.check();
  return { complete, missing };
}

describe("no write is lost once its close has returned", onDevices, () => {
  for (const [name, sequence] of Object.entries(SEQUENCES)) {
    it(`${name}, ${RUNS} times`, async () => {
      const { complete, missing } = await count(sequence, RUNS);
      console.log(`${name}: ${complete} writes in ${RUNS} runs`);
      assert(complete >= RUNS);
      assertEquals(missing, 0);
    });
  }

  it("writes are lost with the unsafe sequence (control)", async () => {
    const { complete, missing } = await count(
      unsafe,
      UNSAFE_RUNS,
      (missing) => missing > 0,
    );
    console.log(`LOOP_CLR_FD alone: ${missing} of ${complete} writes lost`);
    assertGreater(missing, 0);
  });
});
