/**
 * Attaches beside udev, which opens a device whenever it is attached and whenever a
 * process closes it that could write. The kernel detaches when udev closes the device a
 * few milliseconds later. `detach` must wait for that, and not report the device as busy.
 */
import { attach, type Attachment, detach } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { onDevices, run, Scratch } from "../device/support.ts";

/** Number of cycles, even on a slow machine. */
const CYCLES = 200;
const SIZE = 256 << 10;

const isUdevRunning = [...Deno.readDirSync("/proc")].some(({ name }) => {
  try {
    return Deno.readTextFileSync(`/proc/${name}/comm`) === "systemd-udevd\n";
  } catch {
    return false; // not a process, or exited
  }
});

/** Ways to attach and detach a device, used in turn. */
const WAYS:
  ((path: string, write: (device: Attachment) => void) => Promise<void>)[] = [
    async (path, write) => {
      await using device = await attach(path);
      write(device);
    },
    async (path, write) => {
      const device = await attach(path, { partscan: true });
      write(device);
      await device.detach();
    },
    async (path, write) => {
      const device = await attach(path, { autoclear: false, blockSize: 4096 });
      write(device);
      await device.detach();
    },
    async (path, write) => {
      const device = await attach(path);
      const { minor, diskSequence } = device;
      write(device);
      await device.persist();
      await detach({ minor, diskSequence });
    },
  ];

describe(`attach, write and detach ${CYCLES} times`, onDevices, () => {
  it(`loses no byte and leaves no device ${isUdevRunning ? "beside" : "without"} udev`, async () => {
    const expected = Deno.env.get("LOOPDEV_TEST_UDEV");
    if (expected !== undefined) assertEquals(isUdevRunning, expected === "yes");
    using scratch = new Scratch();
    const path = scratch.image(SIZE);
    let seen = 0;
    let longest = 0;
    for (let cycle = 1; cycle <= CYCLES; cycle++) {
      const content = new Uint8Array(SIZE);
      new Uint32Array(content.buffer).fill(cycle * 0x10001);
      let written = 0;
      await WAYS[cycle % WAYS.length]!(path, (device) => {
        Deno.writeFileSync(device.path, content);
        if (isUdevRunning && cycle % 10 === 0) {
          run("udevadm", "settle", "--timeout=10");
          if (isThere(traceOf(device))) seen++;
        }
        written = performance.now();
      });
      longest = Math.max(longest, performance.now() - written);
      assertEquals(scratch.devices(), []);
      const found = Deno.readFileSync(path);
      const wrong = found.findIndex((byte, at) => byte !== content[at]);
      assertEquals(
        wrong,
        -1,
        `cycle ${cycle}: byte ${wrong} is not what was written`,
      );
    }
    console.log(
      `the longest detach: ${
        Math.round(longest)
      } ms; udev was seen ${seen} times`,
    );
    assert(!isUdevRunning || seen > 0, "udev never looked at a device");
    scratch.check();
  });
});

/** Returns the path that udev creates for a device: a link, or an entry if there are no disk sequence numbers. */
function traceOf({ minor, diskSequence }: Attachment): string {
  return diskSequence === 0
    ? `/run/udev/data/b7:${minor}`
    : `/dev/disk/by-diskseq/${diskSequence}`;
}

function isThere(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
