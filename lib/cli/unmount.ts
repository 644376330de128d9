import type { Released } from "../attaching/release.ts";
import { checkPath } from "../arguments.ts";
import { describeHolders } from "../describe_holder.ts";
import { removeLeftNodes } from "../kernel/left_nodes.ts";
import { mountedOn, untilDetached } from "../mounted_on.ts";
import { parse, TIMEOUT_OPTION, timeoutIn, UsageError } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { fileOf } from "./files.ts";
import { warn } from "./output.ts";
import { report } from "./report.ts";
import { Interruptible } from "./signals.ts";
import {
  waitForDevice,
  waitForMount,
  withWaitingMessage,
} from "./waiting_message.ts";

const OPTIONS: Options = {
  ...TIMEOUT_OPTION,
  lazy: {
    help:
      "unmount at once; files that other processes have open stay usable until closed",
  },
};

export const command: Command = {
  title: "Write back and unmount file systems of loop devices.",
  examples: `loopdev unmount /mnt
loopdev unmount /mnt/boot /mnt/root
loopdev unmount --timeout 30s /mnt`,
  options: OPTIONS,
  notes:
    `Waits until DIR is no longer in use, and names its users after one second. If the time
runs out, DIR stays mounted. A device attached by loopdev mount is detached with its last
mount, and is free when the command ends unless it is also mounted elsewhere. All
directories are tried; the exit status is 1 if one failed. Permissions: deno run
--allow-ffi, and root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  if (given.operands.length === 0) throw new UsageError("DIR is missing");
  const directories = given.operands.map(fileOf);
  const timeout = timeoutIn(given);
  const lazy = given.flag("lazy");
  using interruptible = new Interruptible();
  const { signal } = interruptible;
  const devices = new Map<number, Released>();
  let status = 0;
  const attempt = async (call: () => Promise<void>): Promise<void> => {
    try {
      await interruptible.throwIfInterrupted();
      await call();
    } catch (error) {
      status = report(error);
    }
  };
  for (const directory of directories) {
    await attempt(async () => {
      const { mounted, device } = await mountedOn(checkPath(directory));
      const wait = waitForMount(mounted, timeout, "it stays mounted");
      await withWaitingMessage(
        wait,
        () => mounted.unmount({ timeout, lazy, ifUnused: false, signal }),
      );
      if (device !== undefined) devices.set(device.minor, device);
    });
  }
  // Several directories may be mount points of partitions of one device.
  for (const device of lazy ? [] : devices.values()) {
    const wait = waitForDevice(device.minor, timeout);
    await attempt(async () => {
      const mounts = await withWaitingMessage(
        wait,
        () => untilDetached(device, { timeout, signal }),
      );
      removeLeftNodes(device.minor);
      // Another partition that is mounted here is no surprise.
      const elsewhere = mounts.filter((mount) => "pid" in mount);
      if (elsewhere.length === 0) return;
      const where = describeHolders({ holders: elsewhere, complete: true });
      warn(`${device.path} stays attached: ${where.join("; ")}`);
    });
  }
  return status;
}
