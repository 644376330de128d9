import {
  LoopControl,
  LoopError,
  openDirectory,
  UnexpectedDevice,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  losetupDetach,
  onDevices,
  OwnDevice,
  removeDevice,
  run,
  runOk,
  withScratch,
} from "./support.ts";

describe("new LoopControl()", onDevices, () => {
  it(
    "opens the node in dirFd, and refuses another device",
    withScratch((scratch) => {
      using directory = openDirectory(scratch.path);
      const options = { dirFd: directory.fd };
      const node = `${scratch.path}/loop-control`;
      const error = assertThrows(() => new LoopControl(options), LoopError);
      assertEquals(error.code, "ENOENT");
      assertEquals(error.path, node);
      runOk("mkfifo", node);
      assertThrows(() => new LoopControl(options), UnexpectedDevice, "FIFO");
      Deno.removeSync(node);
      runOk("mknod", node, "c", "1", "3");
      assertThrows(() => new LoopControl(options), UnexpectedDevice, "10:237");
      Deno.removeSync(node);
      runOk("mknod", node, "c", "10", "237");
      using control = new LoopControl(options);
      assertEquals(Deno.readLinkSync(`/proc/self/fd/${control.fd}`), node);
    }),
  );
});

describe("LoopControl.add()", onDevices, () => {
  it(
    "adds the device of a number, or one that the kernel chooses",
    withScratch(() => {
      using control = new LoopControl();
      for (const minor of [undefined, -1]) {
        const added = control.add(minor);
        try {
          assert(Deno.statSync(`/dev/loop${added}`).isBlockDevice);
        } finally {
          assertEquals(removeDevice(added), added);
        }
        assertThrows(() => Deno.statSync(`/dev/loop${added}`));
      }
      using own = new OwnDevice();
      const error = assertThrows(() => control.add(own.minor), LoopError);
      assertEquals(error.code, "EEXIST");
      assertEquals(error.operation, "LOOP_CTL_ADD");
      for (const minor of [-2, 1.5, NaN, 2 ** 20, 2 ** 32 + 7]) {
        assertThrows(() => control.add(minor), RangeError);
        assertThrows(() => control.remove(minor), RangeError);
      }
    }),
  );
});

describe("LoopControl.remove()", onDevices, () => {
  it(
    "refuses a device in use, and a missing one",
    withScratch((scratch) => {
      using control = new LoopControl();
      using own = new OwnDevice();
      runOk("losetup", own.path, scratch.image());
      assertEquals(
        assertThrows(() => control.remove(own.minor), LoopError).code,
        "EBUSY",
      );
      losetupDetach(own.path);
      let gone;
      {
        using other = new OwnDevice();
        gone = other.minor;
      }
      assertEquals(
        assertThrows(() => control.remove(gone), LoopError).code,
        "ENODEV",
      );
    }),
  );

  it(
    "removes the lowest device in sysfs that is unbound and not open",
    withScratch((scratch) => {
      // In a mount namespace whose sysfs shows only devices of this test: any other
      // unbound device may belong to another program.
      using bound = new OwnDevice();
      using open = new OwnDevice();
      const control = new LoopControl();
      const [a, b] = [new OwnDevice(), new OwnDevice()];
      const [low, high] = a.minor < b.minor ? [a, b] : [b, a];
      runOk("losetup", bound.path, scratch.image());
      const sys = `${scratch.path}/sys`;
      for (const { name } of [bound, open, a, b]) {
        Deno.mkdirSync(`${sys}/${name}`, { recursive: true });
      }
      Deno.mkdirSync(`${sys}/${bound.name}/loop`);
      const script = `
        import { LoopControl } from "${new URL(
        "../../mod.ts",
        import.meta.url,
      )}";
        using control = new LoopControl();
        for (const minor of [undefined, -1, undefined]) {
          try {
            console.log(control.remove(minor));
          } catch (error) {
            console.log(error.code);
          }
        }`;
      Deno.writeTextFileSync(`${scratch.path}/remove.ts`, script);
      const { stdout, stderr } = run(
        "unshare",
        "--mount",
        "bash",
        "-c",
        `exec 3< ${open.path}
         mount --bind '${sys}' /sys/devices/virtual/block &&
         '${Deno.execPath()}' run -q --no-check --allow-ffi '${scratch.path}/remove.ts'`,
      );
      assertEquals(stdout, `${low.minor}\n${high.minor}\nENODEV\n`, stderr);
      for (const { name } of [low, high]) {
        assertThrows(() => Deno.statSync(`/sys/block/${name}`));
      }
      control.close();
    }),
  );
});

describe("LoopControl.getUnbound()", onDevices, () => {
  it(
    "returns a device that exists",
    withScratch(() => {
      using control = new LoopControl();
      const minor = control.getUnbound();
      assert(Deno.statSync(`/sys/block/loop${minor}`).isDirectory);
    }),
  );
});

describe("LoopControl.close()", onDevices, () => {
  it(
    "closes once, and everything after it throws EBADF",
    withScratch(() => {
      const control = new LoopControl();
      control.close();
      control.close();
      control[Symbol.dispose]();
      assertEquals(control.fd, -1);
      const calls: [string, () => unknown][] = [
        ["LOOP_CTL_ADD", () => control.add()],
        ["LOOP_CTL_REMOVE", () => control.remove()],
        ["LOOP_CTL_REMOVE", () => control.remove(7)],
        ["LOOP_CTL_GET_FREE", () => control.getUnbound()],
      ];
      for (const [operation, call] of calls) {
        const error = assertThrows(call, LoopError, "it is closed");
        assertEquals(error.code, "EBADF");
        assertEquals(error.operation, operation);
      }
    }),
  );
});
