/** Tests doctor() in unusual environments: the true cause comes first. */
import { attach, type Check, doctor } from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { partitionsOf } from "../../lib/kernel/loop_sysfs.ts";
import { addPartition } from "../../lib/sys/blk_uapi.ts";
import {
  DeviceCgroup,
  inNamespace,
  NOBODY,
  noDeviceCgroup,
  publish,
  TMPFS_DEV,
} from "./namespace.ts";
import {
  onAnyKernel,
  onDevices,
  OwnDevice,
  type Scratch,
  withScratch,
} from "./support.ts";

/** Returns the checks of doctor() in another environment. */
function examined(
  scratch: Scratch,
  setup: string,
  options: Parameters<typeof inNamespace>[3] = {},
): Check[] {
  const { stdout, stderr } = inNamespace(
    scratch,
    setup,
    "console.log(JSON.stringify(await loopdev.doctor()));",
    options,
  );
  assert(stdout !== "", stderr);
  return JSON.parse(stdout);
}

function assertCause(
  [first]: Check[],
  name: string,
  finding: RegExp,
  remedy: RegExp,
): void {
  assertEquals(first?.status, "problem", JSON.stringify(first));
  assertEquals(first!.name, name, first!.finding);
  assertMatch(first!.finding, finding);
  assertMatch(first!.remedy ?? "", remedy);
}

const WITHOUT_MKNOD = "setpriv --bounding-set -mknod --inh-caps -mknod";

describe("doctor()", onDevices, () => {
  it("finds no problem where attaching works", async () => {
    const checks = await doctor();
    assertEquals(checks.filter(({ status }) => status === "problem"), []);
    const names = checks.map(({ name }) => name);
    for (const name of ["driver", "loop-control", "nodes", "udev"]) {
      assert(names.includes(name), names.join());
    }
  });

  it(
    ...onAnyKernel(
      "names the missing privileges of a user, and of a user namespace",
    ),
    withScratch((scratch) => {
      publish(scratch);
      const place = { deno: `${scratch.path}/deno`, from: scratch.path };
      assertCause(
        examined(scratch, "true", { user: NOBODY, ...place }),
        "rights",
        /^\/dev\/loop-control cannot be opened: user 65534 has no permission$/,
        /as root/,
      );
      Deno.chmodSync(scratch.path, 0o777);
      assertCause(
        examined(scratch, "true", { user: `${NOBODY} unshare -Ur`, ...place }),
        "user namespace",
        /^\/dev\/loop-control cannot be opened: root of a user namespace/,
        /outside/,
      );
    }),
  );

  it(
    ...onAnyKernel(
      "warns of a tmpfs on /dev, and names what is missing if no node can be created",
    ),
    withScratch((scratch) => {
      const [first, second] = examined(scratch, TMPFS_DEV);
      assertEquals([first?.status, first?.name], ["warning", "/dev"]);
      assertEquals([second?.status, second?.name], ["warning", "nodes"]);
      assertMatch(second!.finding, /have no node: \/dev\/loop0, /);
      assertCause(
        examined(scratch, TMPFS_DEV, { user: WITHOUT_MKNOD }),
        "loop-control",
        /^\/dev\/loop-control does not exist, .* CAP_MKNOD$/,
        /^mknod \/dev\/loop-control .*--device \/dev\/loop-control/,
      );
      const control = `${TMPFS_DEV}; mknod /dev/loop-control c 10 237`;
      assertCause(
        examined(scratch, control, { user: WITHOUT_MKNOD }),
        "nodes",
        /^\/dev\/loop\d+ does not exist, .* CAP_MKNOD$/,
        /^mknod \/dev\/loop\d+/,
      );
    }),
  );

  it(
    ...onAnyKernel(
      "names a loop-control that is another device, and a /dev without devices",
    ),
    withScratch((scratch) => {
      assertCause(
        examined(scratch, "mount --bind /dev/null /dev/loop-control"),
        "loop-control",
        /it is a character device, not character device 10:237$/,
        /^rm \/dev\/loop-control && mknod \/dev\/loop-control c 10 237$/,
      );
      assertCause(
        examined(
          scratch,
          `${TMPFS_DEV}; mknod /dev/loop-control c 10 237; mount -o remount,nodev /dev`,
        ),
        "/dev",
        /nodev/,
        /remount,dev/,
      );
    }),
  );

  it(
    ...onAnyKernel("names a node that is another device"),
    withScratch((scratch) => {
      using own = new OwnDevice();
      const wrong = examined(
        scratch,
        `mount --bind /dev/null ${own.path}`,
      ).filter(({ finding }) => finding.includes(`${own.path} `));
      assertEquals(wrong.map(({ status }) => status), ["warning"]);
      assertMatch(wrong[0]!.finding, /is not the node of loop\d+$/);
      assertEquals(
        wrong[0]!.remedy,
        `rm ${own.path} && mknod ${own.path} b 7 ${own.minor}`,
      );
    }),
  );

  it(
    ...onAnyKernel("names the descriptor limit"),
    withScratch((scratch) => {
      // Set from inside, because Deno itself needs more descriptors to start.
      const { stdout, stderr } = inNamespace(
        scratch,
        "true",
        `const { symbols } = Deno.dlopen("libc.so.6", {
           setrlimit: { parameters: ["i32", "buffer"], result: "i32" },
         });
         await loopdev.doctor(); // loading it uses descriptors too
         symbols.setrlimit(7, new BigUint64Array([16n, 16n])); // RLIMIT_NOFILE
         console.log(JSON.stringify(await loopdev.doctor()));`,
      );
      assert(stdout !== "", stderr);
      assertCause(
        JSON.parse(stdout),
        "descriptors",
        /the limit is 16: |too many open files/,
        /^raise the limit: ulimit -n/,
      );
    }),
  );

  it(
    ...onAnyKernel("names a missing driver"),
    withScratch((scratch) => {
      assertCause(
        examined(
          scratch,
          "mount -t tmpfs t /sys/module; mount --bind /dev/null /proc/devices; mount -t tmpfs t /dev",
        ),
        "driver",
        /^the kernel has no loop driver$/,
        /^load it: modprobe loop/,
      );
      const [first] = examined(
        scratch,
        "mount -t tmpfs t /sys/module; mount --bind /dev/null /proc/devices",
      );
      assertEquals([first?.status, first?.name], ["warning", "driver"]);
      assertMatch(first!.finding, /loads it when loop-control is opened/);
    }),
  );

  it(
    ...onAnyKernel("reports a missing /proc, and nothing else"),
    withScratch((scratch) => {
      const checks = examined(scratch, "mount -t tmpfs t /proc");
      assertEquals(checks.map(({ name }) => name), ["/proc"]);
    }),
  );

  it(
    ...onAnyKernel("warns of a missing /sys"),
    withScratch((scratch) => {
      const [first] = examined(scratch, "mount -t tmpfs none /sys");
      assertEquals([first?.status, first?.name], ["warning", "sysfs"]);
    }),
  );

  it(
    "names a device cgroup that forbids the devices" +
      (noDeviceCgroup === undefined ? "" : ` (skipped: ${noDeviceCgroup})`),
    { ignore: noDeviceCgroup !== undefined },
    withScratch(async (scratch) => {
      for (
        const [rule, node] of [["c 10:237", "-control"], ["b 7:*", "\\d+"]]
      ) {
        await using cgroup = new DeviceCgroup();
        assertCause(
          examined(scratch, cgroup.enter(["deny", `${rule} rwm`])),
          "device cgroup",
          new RegExp(
            `^/dev/loop${node} cannot be opened: a rule of the device`,
          ),
          /--device-cgroup-rule='/,
        );
      }
    }),
  );

  it(
    "warns of leftover partitions and of deleted files",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      {
        await using a = await attach(path, { minor: own.minor });
        addPartition(a.loop.fd, { number: 1, start: 0, size: 4096 });
      }
      const stale = (await doctor())
        .filter(({ name }) => name === "stale partitions");
      // Some kernels remove them at the first open.
      if (partitionsOf(own.minor).length > 0) {
        assertEquals(stale.map(({ status }) => status), ["warning"]);
        assertMatch(
          stale[0]!.finding,
          /^leftover partitions of an earlier file: /,
        );
      }

      await using a = await attach(path, { minor: own.minor });
      Deno.removeSync(path);
      const deleted = (await doctor())
        .filter(({ finding }) => finding.includes(path));
      assertEquals(deleted, [{
        name: "deleted files",
        status: "warning",
        finding:
          `${a.path} uses "${path}", which was deleted but still takes up space`,
        remedy: `if it is no longer needed: loopdev detach ${a.path}`,
      }]);
    }),
  );

  it(
    "changes nothing",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      const before = a.loop.getInfo().bytes;
      const sequence = a.diskSequence;
      await doctor();
      assertEquals(a.loop.getInfo().bytes, before);
      assertEquals(a.diskSequence, sequence);
    }),
  );
});
