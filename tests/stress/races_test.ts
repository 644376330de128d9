import { attach, FileDescriptor } from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  attribute,
  boundDevices,
  diskSequenceOf,
  isSoon,
  onDevices,
  runOk,
  Scratch,
  times,
  Undo,
} from "../device/support.ts";
import {
  AT_FDCWD,
  cString,
  O_EXCL,
  O_RDWR,
  openAt,
} from "../../lib/sys/libc.ts";

const PROCESSES = 8;
const MANY_PROCESSES = 16;
const CYCLES = times(200);

/**
 * Runs processes that attach and detach at the same time. Returns the devices they
 * used.
 */
async function cycleAtOnce(
  scratch: Scratch,
  processes = PROCESSES,
): Promise<Set<string>> {
  const outputs = Array.from(
    { length: processes },
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
  return devices;
}

describe(
  `${PROCESSES} processes attach and detach ${CYCLES} times`,
  onDevices,
  () => {
    it("without a failure, and leave nothing attached", async () => {
      using scratch = new Scratch();
      assert((await cycleAtOnce(scratch)).size >= 1);
      scratch.check();
    });

    it("beside a process that holds the lowest unbound device exclusively", async () => {
      const { path: lowest, holder } = holdLowestUnbound();
      using _holder = holder;
      using scratch = new Scratch();
      const devices = await cycleAtOnce(scratch);
      assert(!devices.has(lowest));
      scratch.check();
    });
  },
);

/** Others may bind or remove a device before it is held. */
function holdLowestUnbound(): { path: string; holder: FileDescriptor } {
  const bound = boundDevices().map(({ name }) => name);
  for (let minor = 0; minor < 4096; minor++) {
    if (bound.includes(`loop${minor}`)) continue;
    const path = `/dev/loop${minor}`;
    const fd = openAt(AT_FDCWD, cString(path), O_RDWR | O_EXCL);
    if (fd >= 0) return { path, holder: new FileDescriptor(fd) };
  }
  throw new Error("no unbound device can be held");
}

describe(
  `${MANY_PROCESSES} processes attach and detach ${CYCLES} times`,
  onDevices,
  () => {
    it("beside losetup, and do not touch its devices", async () => {
      using scratch = new Scratch();
      const victim = scratch.image(1 << 20, "victim.img");
      Deno.writeFileSync(victim, new Uint8Array(1 << 20).fill(0x7e));
      const device = runOk("losetup", "--find", "--show", victim);
      using detached = new Undo(() => runOk("losetup", "-d", device));
      const name = device.replace("/dev/", "");
      const state = () => [
        ...["loop/backing_file", "loop/autoclear"]
          .map((key) => attribute(name, key)),
        diskSequenceOf(name),
      ];
      const before = state();

      // Another tool attaches a file, and checks that its device does not change.
      const theirs = scratch.image(1 << 20, "theirs.img");
      const stop = `${scratch.path}/stop`;
      const other = new Deno.Command("bash", {
        args: [
          "-c",
          `cycles=0
         while [ ! -e '${stop}' ]; do
           dev=/dev/loop$((RANDOM % 8))
           losetup "$dev" '${theirs}' 2> /dev/null || continue
           file=$(losetup --noheadings --output BACK-FILE "$dev")
           [ "$file" = '${theirs}' ] || echo "stolen: $dev has $file"
           losetup --detach "$dev" || echo "lost: $dev"
           cycles=$((cycles + 1))
         done
         echo "$cycles cycles"`,
        ],
        stdout: "piped",
      }).spawn();
      await cycleAtOnce(scratch, MANY_PROCESSES);
      Deno.writeTextFileSync(stop, "");
      const { stdout } = await other.output();
      const text = new TextDecoder().decode(stdout).trim();
      console.log(`losetup: ${text}`);
      assertMatch(text, /^[1-9]\d* cycles$/);

      assertEquals(state(), before);
      const content = Deno.readFileSync(device);
      assert(content.every((byte) => byte === 0x7e));
      detached[Symbol.dispose]();
      scratch.check();
    });
  },
);

describe("kill -9 of a process that attaches in a loop", onDevices, () => {
  const rounds = times(100);
  it(`leaves nothing attached, ${rounds} times`, async () => {
    using scratch = new Scratch();
    const path = scratch.image();
    let whileBound = 0;
    for (let round = 0; round < rounds; round++) {
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
      // Kill some at once, others a little later.
      if (round % 2 === 1) {
        await new Promise((resolve) => setTimeout(resolve, round / 20));
      }
      // Stopped first, so that the state observed is the state killed.
      process.kill("SIGSTOP");
      // In every other round, wait until it is attached, however long that takes on
      // this machine.
      while (round % 2 === 0 && scratch.devices().length === 0) {
        process.kill("SIGCONT");
        await new Promise((resolve) => setTimeout(resolve, 1));
        process.kill("SIGSTOP");
      }
      if (scratch.devices().length > 0) whileBound++;
      process.kill("SIGKILL");
      await process.status;
      assert(isSoon(() => scratch.devices().length === 0), "it stays attached");
    }
    console.log(`killed ${whileBound} of ${rounds} times while attached`);
    assert(whileBound >= 0.3 * rounds, `only ${whileBound} while attached`);
    scratch.check();
  });
});

// Fewer say nothing, except on emulated machines, where they would take too long.
const MANY_CYCLES = Math.min(10_000, times(20_000));

describe(`${MANY_CYCLES} cycles in one process`, onDevices, () => {
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
    for (let cycle = 1; cycle <= MANY_CYCLES; cycle++) {
      const device = await attach(path);
      await device.detach();
      // Until then, the runtime compiles code and sizes its heap.
      if (cycle === MANY_CYCLES / 2) {
        [memory, descriptors] = [resident(), count()];
      }
    }
    const grown = resident() - memory;
    console.log(`resident memory grew by ${grown} bytes`);
    assertEquals(count(), descriptors);
    assert(grown < 1024 * 1024, `grew by ${grown} bytes`);
    scratch.check();
  });
});
