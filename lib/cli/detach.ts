import type { LoopDevice } from "../kernel/attached_devices.ts";
import { detach } from "../detach.ts";
import { type DeviceRef, minorOf } from "../device_ref.ts";
import { find, list } from "../devices.ts";
import { quote } from "../errors.ts";
import { parse, parseDevice, parseTimeout, UsageError } from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command, Options } from "./command.ts";
import { report } from "./report.ts";
import { fail } from "./output.ts";

const OPTIONS: Options = {
  file: { value: "FILE", help: "the devices that FILE is attached to" },
  "loop-ref": {
    value: "NAME",
    help: "the devices attached with that --loop-ref",
  },
  lazy: { help: "do not wait for others that have it open" },
  timeout: {
    value: "TIME",
    help: "wait so long for them: 5s (the default), 500ms ...",
  },
};

export const command: Command = {
  title: "Detach loop devices, and wait until they are free.",
  examples: `loopdev detach /dev/loop0
loopdev detach 3 4 5
loopdev detach --file disk.img             all devices of a file
loopdev detach --loop-ref "build 7"        all devices of that name
loopdev detach /dev/loop0 --timeout 30s`,
  options: OPTIONS,
  notes:
    `What was written through a device is in the file when the command ends. When others
have a device open, they are named, and the kernel detaches it when they let go. What
DEV, --file and --loop-ref name adds up.
All devices are tried; the exit status is 1 when one failed, or there was none.
Permissions: deno run --allow-ffi, and mostly root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const file = given.value("file");
  const reference = given.value("loop-ref");
  const timeout = given.value("timeout");
  const options = {
    lazy: given.flag("lazy"),
    timeout: timeout === undefined ? undefined : parseTimeout(timeout),
  };
  const devices: DeviceRef[] = given.operands.map(parseDevice);
  if (devices.length + Number(file !== undefined) === 0 && !reference) {
    throw new UsageError("DEV is missing");
  }
  let status = 0;
  const add = (found: LoopDevice[], whose: string): void => {
    devices.push(...found);
    if (found.length > 0) return;
    fail(`there is no device ${whose}`);
    status = 1;
  };
  if (file !== undefined) add(find(fileOf(file)), `of file ${quote(file)}`);
  if (reference !== undefined) {
    add(list({ reference }), `with reference ${quote(reference)}`);
  }
  const tried = new Set<number>();
  for (const device of devices) {
    try {
      const minor = minorOf(device);
      if (tried.has(minor)) continue; // it was named twice
      tried.add(minor);
      await detach(device, options);
    } catch (error) {
      status = report(error);
    }
  }
  return status;
}
