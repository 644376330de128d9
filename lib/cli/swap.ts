import { Backing } from "../attaching/backing.ts";
import { lockedError, tryLockRange } from "../attaching/overlap.ts";
import { quote } from "../errors.ts";
import { openFile } from "../kernel/file_descriptor.ts";
import { openDevice, pair, parse } from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { follow, showsPartitions } from "./follow.ts";

export const command: Command = {
  title: "Replace the file of a read-only loop device, even while in use.",
  examples: "loopdev swap /dev/loop0 rootfs-2.squashfs",
  options: {},
  notes:
    `The device must be read-only, and FILE exactly as large as the current file. Nothing
else about the device changes, but partitions become those of FILE. Permissions: deno run
--allow-ffi, and usually root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const [device, file] = pair(parse(args).operands, "DEV", "FILE");
  const path = fileOf(file);
  using descriptor = openFile(path, { readOnly: true });
  const backing = new Backing(descriptor.fd, quote(String(path)));
  using loop = openDevice(device, { readOnly: true });
  const { offset: start, sizelimit: length } = loop.getInfo();
  // The device keeps the lock, like a device that attach has bound.
  const claim = { backing, start, length, readOnly: true };
  if (!tryLockRange(claim)) throw lockedError(claim, loop);
  const shows = showsPartitions(loop);
  loop.changeFd(descriptor.fd);
  if (shows) await follow(loop);
  return 0;
}
