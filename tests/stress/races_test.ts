import { attach } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  boundDevices,
  holdExclusively,
  onDevices,
  Scratch,
} from "../device/support.ts";

const PROCESSES = 8;
const CYCLES = 200;

/** Processes that attach and detach at once. The devices that they had. */
async function cycleAtOnce(scratch: Scratch): Promise<Set<string>> {
  const outputs = Array.from(
    { length: PROCESSES },
    (_, index) =>
      new Deno.Command(Deno.execPath(), {
        args: [
          ..."run -q --no-check --allow-ffi".split(" "),
          new URL("cycles.ts", import.meta.url).pathname,
          scratch.image(1 << 20, `${index}.img`),
          `${CYCLES}`,
        ],
      }).output(),
  );
  const devices = new Set<string>();
  for (const { code, stdout, stderr } of await Promise.all(outputs)) {
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    for (const name of new TextDecoder().decode(stdout).trim().split(" ")) {
      devices.add(name);
    }
  }
  scratch.check();
  return devices;
}

describe(
  `${PROCESSES} processes attach and detach ${CYCLES} times`,
  onDevices,
  () => {
    it("without a failure, and leave nothing", async () => {
      using scratch = new Scratch();
      assert((await cycleAtOnce(scratch)).size >= 1);
    });

    it("beside somebody who holds the lowest unbound device exclusively", async () => {
      const lowest = `/dev/loop${lowestUnbound()}`;
      using _holder = holdExclusively(lowest);
      using scratch = new Scratch();
      const devices = await cycleAtOnce(scratch);
      assert(!devices.has(lowest));
    });
  },
);

function lowestUnbound(): number {
  const bound = boundDevices().map(({ name }) => name);
  for (let minor = 0;; minor++) {
    if (!bound.includes(`loop${minor}`)) return minor;
  }
}

describe("kill -9 of a process that attaches in a loop", onDevices, () => {
  it("leaves nothing, 100 times", async () => {
    using scratch = new Scratch();
    const path = scratch.image();
    let whileBound = 0;
    for (let round = 0; round < 100; round++) {
      const process = new Deno.Command(Deno.execPath(), {
        args: [
          ..."run -q --no-check --allow-ffi".split(" "),
          new URL("cycles.ts", import.meta.url).pathname,
          path,
          "1000000",
        ],
        stdout: "null",
      }).spawn();
      while (scratch.devices().length === 0) {
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      // Some at once, some a little later.
      if (round % 2 === 1) {
        await new Promise((resolve) => setTimeout(resolve, round / 20));
      }
      // Stopped, so that what is seen is what is killed.
      process.kill("SIGSTOP");
      if (scratch.devices().length > 0) whileBound++;
      process.kill("SIGKILL");
      await process.status;
      assertEquals(scratch.devices(), []);
    }
    console.log(`killed ${whileBound} of 100 times while attached`);
    assert(whileBound >= 30, `only ${whileBound} while attached`);
    scratch.check();
  });
});

describe("10 000 cycles in one process", onDevices, () => {
  it("leak neither descriptors nor memory", async () => {
    using scratch = new Scratch();
    const path = scratch.image();
    const { gc } = globalThis as unknown as { gc: () => void };
    const count = () => [...Deno.readDirSync("/proc/self/fd")].length;
    const resident = () => {
      gc();
      return Deno.memoryUsage().rss;
    };
    let [memory, descriptors] = [0, 0];
    for (let cycle = 1; cycle <= 10_000; cycle++) {
      const device = await attach(path);
      await device.detach();
      if (cycle === 1000) [memory, descriptors] = [resident(), count()];
    }
    const grown = resident() - memory;
    console.log(`resident memory grew by ${grown} bytes`);
    assertEquals(count(), descriptors);
    assert(grown < 2 * 1024 * 1024, `grew by ${grown} bytes`);
    scratch.check();
  });
});
