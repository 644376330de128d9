import { openFile } from "../kernel/file_descriptor.ts";
import { openDevice, parse, UsageError } from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { follow, showsPartitions } from "./follow.ts";

export const command: Command = {
  title: "Exchange the file of a read-only loop device, in use or not.",
  examples: "loopdev swap /dev/loop0 rootfs-2.squashfs",
  options: {},
  notes:
    `The device must be read-only, and FILE as large as the file that it had. Everything
else about the device stays; partitions become those of FILE. Permissions: deno run --allow-ffi, and mostly root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const [device, file, ...more] = parse(args).operands;
  if (device === undefined || file === undefined || more.length > 0) {
    throw new UsageError("swap takes DEV and FILE");
  }
  using backing = openFile(fileOf(file), { readOnly: true });
  using loop = openDevice(device, { readOnly: true });
  const shows = showsPartitions(loop);
  loop.changeFd(backing.fd);
  if (shows) await follow(loop);
  return 0;
}
