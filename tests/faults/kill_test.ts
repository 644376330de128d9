/**
 * Kills a process with `kill -9` at every system call: nothing stays attached that was
 * not meant to.
 *
 * `LOOPDEV_FAULTS=all` kills in every operation; otherwise in the short ones.
 */
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  attribute,
  CLI,
  isSoon,
  numbersTo,
  onDevices,
  OwnDevice,
  run,
  runOk,
  Scratch,
} from "../device/support.ts";
import { countCalls } from "./harness.ts";
import { Site } from "./site.ts";

const ALL = Deno.env.get("LOOPDEV_FAULTS") === "all";
const OPERATIONS = ["attach", "detach", "changeFd", "setStatus", "persist"];
const LONG_OPERATIONS = [
  "attach with every option",
  "attach a descriptor, no overlap",
  "mount",
  "unmount",
];

/** Yields the calls of an operation, each once: `ioctl:signal=KILL:when=2`. */
function* kills(trace: string): Generator<string> {
  for (const [call, count] of countCalls(trace)) {
    for (const when of numbersTo(Math.min(count, 60))) {
      yield `${call}:signal=KILL:when=${when}`;
    }
  }
}

describe("kill -9 at every system call", onDevices, () => {
  for (const name of ALL ? [...OPERATIONS, ...LONG_OPERATIONS] : OPERATIONS) {
    it(`leaves nothing attached by ${name}`, async () => {
      await using site = new Site();
      await site.setUp(name);
      const { trace } = await site.traced(name);
      await site.tell("cleanup", name);
      await site.restart();
      let killed = 0;
      for (const injection of kills(trace)) {
        await site.setUp(name);
        const { answer } = await site.traced(name, injection);
        if (answer !== undefined) { // it took another path
          await site.tell("cleanup", name);
          continue;
        }
        killed++;
        await site.restart();
        if (name !== "persist") isSoon(() => site.devices().length === 0);
        const [device, ...more] = site.devices();
        assertEquals(more, []);
        if (device === undefined) continue;
        assertEquals(name, "persist", `${injection}: ${device} stays attached`);
        assertEquals(attribute(device, "loop/autoclear"), "0");
        run("losetup", "-d", `/dev/${device}`);
      }
      site.victim.check();
      console.log(`${name}: killed at ${killed} calls`);
      assert(killed > 0);
    });
  }

  it("leaves nothing attached by loopdev run", () => {
    using own = new OwnDevice();
    using scratch = new Scratch();
    const image = scratch.image();
    const sysfs = `/sys/devices/virtual/block/${own.name}`;
    const paths = [image, own.path, `${sysfs}/dev`, `${sysfs}/loop`, sysfs];
    const trace = (injection: string[]) =>
      run(
        "strace",
        ..."-f -qq -o".split(" "),
        `${scratch.path}/log`,
        ...paths.flatMap((path) => ["-P", path]),
        "-e",
        "trace=openat,ioctl,pread64,statx,sync_file_range,getdents64,fcntl",
        ...injection,
        Deno.execPath(),
        ..."run -q --no-check --allow-ffi --allow-run".split(" "),
        CLI,
        ...["run", "--device", own.path, image, "--", "sh", "-c"],
        "head -c 4096 /dev/zero > $LOOPDEV",
      );
    const { code, stderr } = trace([]);
    assertEquals(code, 0, stderr);
    const log = Deno.readTextFileSync(`${scratch.path}/log`)
      .replace(/^\d+ +/gm, "");
    let [tried, killed] = [0, 0];
    for (const injection of kills(log)) {
      tried++;
      const { code } = trace(["-e", `inject=${injection}`]);
      if (code !== 0) killed++;
      isSoon(() => scratch.devices().length === 0); // udev may have it open
      assertEquals(scratch.devices(), [], injection);
    }
    console.log(`loopdev run: killed at ${killed} calls`);
    assert(killed > Math.min(5, tried / 2), `${killed} of ${tried}`);
    scratch.check();
  });

  it("of loopdev run --mount", () => {
    using scratch = new Scratch();
    const image = scratch.image(2 << 20);
    runOk("mkfs.ext4", "-q", "-F", image);
    const directory = `${scratch.path}/mnt`;
    Deno.mkdirSync(directory);
    const log = `${scratch.path}/log`;
    const trace = (injection: string[]) =>
      run(
        "strace",
        ..."-f -qq -o".split(" "),
        log,
        "-e",
        `trace=${MOUNT_CALLS}`,
        ...injection,
        Deno.execPath(),
        ..."run -q --no-check --allow-ffi --allow-run".split(" "),
        ...[CLI, "run", "--mount", directory, image, "--"],
        ...["touch", `${directory}/file`],
      );
    const { code, stderr } = trace([]);
    assertEquals(code, 0, stderr);
    const calls = Deno.readTextFileSync(log).matchAll(/^\d+ +(\w+)\(/gm);
    const counts = Map.groupBy(
      [...calls].map(([, call]) => call!),
      (call) => call,
    );
    let killed = 0;
    for (const [call, { length }] of counts) {
      for (const when of numbersTo(length)) {
        const injection = `${call}:signal=KILL:when=${when}`;
        if (trace(["-e", `inject=${injection}`]).code !== 0) killed++;
        isSoon(() => scratch.devices().length === 0); // udev may have it open
        assertEquals(scratch.devices(), [], injection);
        const mounts = Deno.readTextFileSync("/proc/self/mountinfo");
        assert(!mounts.includes(directory), injection);
        assertEquals(run("e2fsck", "-f", "-n", image).code, 0, injection);
      }
    }
    console.log(`loopdev run --mount: killed at ${killed} calls`);
    assert(killed >= Math.min(5, counts.size));
    scratch.check();
  });
});

/** The system calls that mount in a namespace, and unmount. */
const MOUNT_CALLS =
  "fsopen,fsconfig,fsmount,unshare,mount,move_mount,umount2,syncfs";
