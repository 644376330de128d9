import { asPrefix } from "../devices.ts";
import { quote } from "../errors.ts";
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
import { bytesOf, fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { printPath, warn } from "./output.ts";

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
  const parent = fileOf(directory);
  using target = openDirectory(parent);
  const name = new TextEncoder().encode(loop.name);
  const path = new Uint8Array([...asPrefix(bytesOf(parent)), ...name]);
  try {
    loop.mknod({ dirFd: target.fd });
  } catch (error) {
    const mode = modeOfNode(target.fd, loop);
    if (mode === undefined) throw error;
    if ((mode & OTHERS) !== 0) {
      warn(
        `${
          quote(new TextDecoder().decode(path))
        } was there already, and other users may open it`,
      );
    }
  }
  printPath(path);
  return 0;
}

/** Permissions of the group and of all other users. */
const OTHERS = 0o077;

/** Returns the mode of the node of a device if a directory has it already. */
function modeOfNode(
  directory: number,
  { fd, name }: Loop,
): number | undefined {
  const device = statOf(fd);
  const node = statAt(directory, cString(name), AT_SYMLINK_NOFOLLOW);
  const isIt = typeof device !== "number" && typeof node !== "number" &&
    isBlockDevice(node) && node.rdev === device.rdev;
  return isIt ? node.mode : undefined;
}
