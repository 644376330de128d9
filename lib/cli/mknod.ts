import { openDirectory } from "../kernel/file_descriptor.ts";
import type { Loop } from "../kernel/loop.ts";
import { cString } from "../sys/libc.ts";
import {
  AT_SYMLINK_NOFOLLOW,
  isBlockDevice,
  statAt,
  statOf,
} from "../sys/stat.ts";
import { openDevice, pair, parse } from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { print } from "./output.ts";

export const command: Command = {
  title: "Make a node of a loop device in a directory, with mode 0600.",
  examples:
    "loopdev mknod /dev/loop3 /run/build/dev    makes /run/build/dev/loop3",
  options: {},
  notes:
    `A node that is left over gives access to any file attached to that device later:
remove it when it is no longer needed. Prints the path of the node, also if it was there
already; nothing else is replaced.
Permissions: deno run --allow-ffi, and root.`,
  run,
};

function run(args: string[]): number {
  const [device, directory] = pair(parse(args).operands, "DEV", "DIR");
  using loop = openDevice(device, { readOnly: true });
  using target = openDirectory(fileOf(directory));
  try {
    loop.mknod({ dirFd: target.fd });
  } catch (error) {
    if (!hasNode(target.fd, loop)) throw error;
  }
  print(`${directory.replace(/\/+$/, "")}/${loop.name}`);
  return 0;
}

/** Returns `true` if a directory has the node of a device already. */
function hasNode(directory: number, { fd, name }: Loop): boolean {
  const device = statOf(fd);
  const node = statAt(directory, cString(name), AT_SYMLINK_NOFOLLOW);
  return typeof device !== "number" && typeof node !== "number" &&
    isBlockDevice(node) && node.rdev === device.rdev;
}
