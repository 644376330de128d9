import { checkPath } from "../arguments.ts";
import { Backing } from "../attaching/backing.ts";
import { lockForChange } from "../attaching/overlap.ts";
import { sequenceOf } from "../attaching/release.ts";
import { LoopError, quote } from "../errors.ts";
import { openFile } from "../kernel/file_descriptor.ts";
import type { Loop } from "../kernel/loop.ts";
import { openDevice, pair, parse } from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { follow, showsPartitions } from "./follow.ts";
import { warn } from "./output.ts";

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
  const backing = new Backing(descriptor.fd, quote(checkPath(path).text));
  using loop = openDevice(device, { readOnly: true });
  const { offset: start, sizelimit: length } = loop.getInfo();
  // The device keeps the lock, like a device that attach has bound.
  const claim = { backing, start, length, readOnly: true };
  lockForChange(claim, loop);
  const shows = showsPartitions(loop);
  loop.changeFd(descriptor.fd);
  dropOldPages(loop);
  if (shows) await follow(loop);
  return 0;
}

/** Drops what was read of the old file, which the kernel does from Linux 5.15 on. */
function dropOldPages(loop: Loop): void {
  if (sequenceOf(loop) !== undefined) return;
  try {
    loop.flushBuffers();
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    warn(`what was read before still shows the old file: ${error.message}`);
  }
}
