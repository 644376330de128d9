/**
 * Tests the restrictions of containers described in the README, made of a mount
 * namespace, a device cgroup and a set of capabilities.
 */
import { attach } from "@loopdev/loopdev";
import { assert, assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  DeviceCgroup,
  inNamespace,
  noDeviceCgroup,
  TMPFS_DEV,
} from "./namespace.ts";
import { onDevices, runOk, type Scratch, withScratch } from "./support.ts";

/** Capabilities that Docker and Podman leave to root in a container. */
const DEFAULT_CAPABILITIES =
  "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap"
    .split(" ");
/**
 * Devices of every container: null, zero, full, random, urandom, tty, console, ptmx,
 * pts.
 */
const DEFAULT_DEVICES =
  "c 1:3,c 1:5,c 1:7,c 1:8,c 1:9,c 5:0,c 5:1,c 5:2,c 136:*".split(",");

/** Runs a script as in a container with the given devices and capabilities. */
async function inContainer(
  scratch: Scratch,
  { devices, capabilities }: { devices: string[]; capabilities: string[] },
  body: string,
): Promise<string> {
  await using cgroup = new DeviceCgroup();
  const rules = [...DEFAULT_DEVICES, ...devices]
    .map((rule): ["allow", string] => ["allow", `${rule} rwm`]);
  const setup = [
    TMPFS_DEV,
    "mknod /dev/loop-control c 10 237", // --device /dev/loop-control
    "mount -o remount,bind,ro /sys",
    cgroup.enter(["deny", "a"], ...rules),
  ].join("; ");
  const kept = [...DEFAULT_CAPABILITIES, ...capabilities]
    .map((name) => `+${name}`);
  const { stdout, stderr } = inNamespace(scratch, setup, body, {
    user: `setpriv --bounding-set -all,${kept.join()}`,
  });
  assert(stdout !== "", stderr);
  return stdout;
}

const LOOP_DEVICES = ["c 10:237", "b 7:*"];

describe(
  "a container" +
    (noDeviceCgroup === undefined ? "" : ` (skipped: ${noDeviceCgroup})`),
  { ignore: onDevices.ignore || noDeviceCgroup !== undefined },
  () => {
    it(
      "attaches and detaches with only loop-control and a rule for 7:*",
      withScratch(async (scratch) => {
        const image = scratch.image();
        const output = await inContainer(
          scratch,
          { devices: LOOP_DEVICES, capabilities: [] },
          `await tell(async () => {
             await using device = await attach("${image}", { overlap: "refuse" });
             Deno.dlopen("libc.so.6", {
               pwrite: { parameters: ["i32", "buffer", "usize", "i64"], result: "i64" },
             }).symbols.pwrite(device.loop.fd, new TextEncoder().encode("hello"), 5n, 4096n);
             return device.size;
           });
           await tell(async () => detach(await (await attach("${image}")).persist()));
           await tell(async () => {
             const problems = (await loopdev.doctor()).filter(({ status }) => status === "problem");
             return problems;
           });`,
        );
        assertEquals(output, `ok ${1 << 20}\nok null\nok []\n`);
        const bytes = Deno.readFileSync(image).subarray(4096, 4101);
        assertEquals(new TextDecoder().decode(bytes), "hello");
      }),
    );

    it(
      "has partitions with CAP_SYS_ADMIN and a rule for 259:*",
      withScratch(async (scratch) => {
        const image = scratch.image(64 << 20);
        runOk(
          "sh",
          "-c",
          `printf 'label: gpt\\nsize=8M\\nsize=8M\\n' | sfdisk --quiet '${image}'`,
        );
        const nodes = `${scratch.path}/nodes`;
        Deno.mkdirSync(nodes);
        const body = `await tell(async () => {
            await using device = await attach("${image}", { nodes: "${nodes}", partscan: true });
            return (await device.partitions()).map(({ path, size }) => [path, size]);
          });`;
        const output = await inContainer(scratch, {
          devices: [...LOOP_DEVICES, "b 259:*"],
          capabilities: ["sys_admin"],
        }, body);
        assertMatch(
          output,
          new RegExp(
            `^ok \\[\\["${nodes}/loop\\d+p1",8388608\\],\\["${nodes}/loop\\d+p2",8388608\\]\\]\\n$`,
          ),
        );
        assertEquals([...Deno.readDirSync(nodes)], []);
      }),
    );

    it(
      "gets an error that names the missing option",
      withScratch(async (scratch) => {
        const output = await inContainer(
          scratch,
          { devices: [], capabilities: [] },
          `await tell(async () => (await loopdev.doctor())[0].remedy);
           await tell(() => attach("${scratch.image()}"));`,
        );
        assertMatch(
          output,
          /^ok "allow it: docker run --device-cgroup-rule='c 10:237 rwm'/,
        );
        assertMatch(output, /\nLoopError EPERM Cannot open /);
      }),
    );

    it(
      "sees devices attached outside",
      withScratch(async (scratch) => {
        await using a = await attach(scratch.image());
        const output = await inContainer(
          scratch,
          { devices: LOOP_DEVICES, capabilities: [] },
          `await tell(() => list().some(({ path }) => path === "${a.path}"));`,
        );
        assertEquals(output, "ok true\n");
      }),
    );
  },
);
