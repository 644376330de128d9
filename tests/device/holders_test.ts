import {
  attach,
  detach,
  type Holder,
  holders,
  Loop,
  LoopBusyError,
  LoopError,
  StaleDeviceError,
  UnexpectedDevice,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { describeHolder } from "../../lib/holder.ts";
import {
  cli,
  isSoon,
  mounted,
  onDevices,
  OwnDevice,
  run,
  runOk,
  Undo,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

/** The holders in words. */
function describeAll(device: string): string[] {
  return holders(device).map((holder) => describeHolder(holder, device));
}

/** Without the processes that look at all devices, as other tests do. */
function lasting(found: Holder[]): Holder[] {
  return found.filter(({ kind }) => kind !== "process");
}

/** A process that is there, and has done what it was told, until this is disposed of. */
class Background implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #output: ReadableStreamDefaultReader<Uint8Array>;

  private constructor(script: string) {
    this.#child = new Deno.Command("bash", {
      args: ["-c", `${script}; echo; read`],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#output = this.#child.stdout.getReader();
  }

  static async start(script: string): Promise<Background> {
    const process = new Background(script);
    await process.#output.read();
    return process;
  }

  get pid(): number {
    return this.#child.pid;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child.stdin.close();
    await this.#child.status;
    await this.#output.cancel();
  }
}

describe("holders()", onDevices, () => {
  it(
    "finds nobody on a device that nobody uses",
    withScratch((scratch) => {
      using own = new OwnDevice();
      assertEquals(lasting(holders(own.path)), []);
      runOk("losetup", own.path, scratch.image());
      assertEquals(lasting(holders(own.minor)), []);
    }),
  );

  it(
    "finds processes, this one too, through any node",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image());
      const fd = a.loop.fd;
      runOk("cp", "-a", a.path, `${scratch.path}/node`);
      await using process = await Background.start(
        `exec 9<'${scratch.path}/node'`,
      );
      const found = holders(a);
      assertEquals(found, [
        ...found.filter(({ kind }) => kind === "process"),
      ]);
      const mine = found.find((holder) =>
        holder.kind === "process" && holder.pid === Deno.pid
      );
      assert(mine?.kind === "process");
      assertEquals([mine.device, mine.fd], [a.path, fd]);
      const other = found.find((holder) =>
        holder.kind === "process" && holder.pid === process.pid
      );
      assert(other?.kind === "process");
      assertEquals([other.fd, other.command], [9, "bash"]);
      const words = describeAll(a.path);
      assert(words.includes(`open in this process (descriptor ${fd})`));
      assert(words.includes(`open in process ${process.pid} (bash)`));
    }),
  );

  it(
    "finds mounts, in other mount namespaces too",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", image);
      const here = `${scratch.path}/a mount`;
      const there = `${scratch.path}/there`;
      Deno.mkdirSync(here);
      Deno.mkdirSync(there);
      const device = runOk("losetup", "--find", "--show", image);
      using mount = mounted(device, here);
      {
        await using process = await Background.start(
          `exec unshare --mount --propagation private bash -c "mount ${device} '${there}'; echo; read"`,
        );
        assertEquals(lasting(holders(device)), [
          { kind: "mount", device, target: here },
          { kind: "mount", device, target: there },
        ]);
        assert(process.pid > 0);
        assert(describeAll(device).includes(`mounted on ${here}`));
      }
      mount[Symbol.dispose]();
      assertEquals(lasting(holders(device)), []);
      await detach(device);
    }),
  );

  it(
    "finds swap, and other loop devices on top",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkswap", image);
      const device = runOk("losetup", "--find", "--show", image);
      runOk("swapon", device);
      using swap = new Undo(() => runOk("swapoff", device));
      assertEquals(lasting(holders(device)), [{ kind: "swap", device }]);
      swap[Symbol.dispose]();
      const upper = runOk("losetup", "--find", "--show", device);
      const name = upper.replace("/dev/", "");
      assertEquals(lasting(holders(device)), [{ kind: "block", device, name }]);
      assert(describeAll(device).includes(`used by ${name}`));
      await detach(upper);
      await detach(device);
    }),
  );

  it(
    "finds who holds a partition",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      await using a = await attach(scratch.image(), {
        minor: own.minor,
        partscan: true,
      });
      runOk("addpart", own.path, "1", "8", "8");
      using partition = await Deno.open(`${own.path}p1`);
      assert(partition);
      const found = holders(own.path).find((holder) =>
        holder.kind === "process" && holder.device !== own.path &&
        holder.pid === Deno.pid
      );
      assert(found?.kind === "process");
      assertEquals(found.device, `${own.path}p1`);
      assertMatch(
        describeHolder(found, own.path),
        new RegExp(`^${own.path}p1 open in this process`),
      );
      partition.close();
      await a.detach();
    }),
  );

  it(
    "refuses a recycled device, a partition and what does not exist",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const a = await attach(scratch.image(), { minor: own.minor });
      const { minor, diskSequence } = a;
      await a.detach();
      runOk("losetup", own.path, scratch.image());
      assertThrows(() => holders({ minor, diskSequence }), StaleDeviceError);
      assertThrows(() => holders("/dev/null"), UnexpectedDevice);
      assertThrows(() => holders(-1), RangeError);
      assertThrows(() => holders(`${scratch.path}/none`), LoopError);
    }),
  );
});

describe("LoopBusyError", onDevices, () => {
  it(
    "names who keeps the device busy",
    withScratch(async (scratch) => {
      const image = scratch.image(16 * MiB);
      runOk("mkfs.ext4", "-q", image);
      const mnt = `${scratch.path}/mnt`;
      Deno.mkdirSync(mnt);
      const a = await attach(image);
      const { path } = a;
      using mount = mounted(path, mnt);
      const error = await assertRejects(
        () => a.detach({ timeout: 0 }),
        LoopBusyError,
      );
      assertEquals(lasting(error.holders), [
        { kind: "mount", device: path, target: mnt },
      ]);
      assertMatch(error.message, new RegExp(`mounted on ${mnt};.* the kernel`));
      const shown = cli("show", path);
      assertMatch(shown.stdout, new RegExp(`holders +mounted on ${mnt}`));
      const refused = cli("detach", path, "--timeout", "10ms");
      assertEquals(refused.code, 1);
      assertMatch(refused.stderr, new RegExp(`mounted on ${mnt}`));
      mount[Symbol.dispose](); // and the kernel detaches
      assert(isSoon(() => scratch.devices().length === 0));
      await a.detach();
    }),
  );

  it("says when others cannot be seen", async () => {
    // Without rights nothing can be attached, but holders can be looked for.
    const { code, stdout } = run(
      "bash",
      "-c",
      `setpriv --reuid 65534 --clear-groups bash -c 'ls /proc/1/fd' 2>&1; true`,
    );
    assertEquals(code, 0);
    assertMatch(stdout, /denied/);
    const { findHolders } = await import("../../lib/holders.ts");
    const { isPartial } = findHolders(0);
    assertEquals(typeof isPartial, "boolean");
    using own = new OwnDevice();
    using loop = new Loop(own.minor);
    assert(findHolders(own.minor).holders.length >= 1, `${loop.path}`);
  });
});
