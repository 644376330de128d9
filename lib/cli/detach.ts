import { detach } from "../detach.ts";
import { parse, parseDevice, UsageError } from "./arguments.ts";
import { type Command, report } from "./main.ts";

const HELP = `Detach loop devices, and wait until they are free.

Examples:
  loopdev detach /dev/loop0
  loopdev detach 3 4 5

Usage: loopdev detach DEV...

What was written through a device is in the file when the command ends. A device that
others have open is waited for, 5 seconds; the kernel detaches it when they let go.
All devices are tried; the exit status is 1 when one failed.
Permissions: deno run --allow-ffi, and mostly root.`;

export const command: Command = { help: HELP, run };

async function run(args: string[]): Promise<number> {
  const devices = parse(args).operands.map(parseDevice);
  if (devices.length === 0) throw new UsageError("DEV is missing");
  let status = 0;
  for (const device of devices) {
    try {
      await detach(device);
    } catch (error) {
      status = report(error);
    }
  }
  return status;
}
