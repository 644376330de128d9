/** What a device leaves out of its file, where the user may not have meant that. */
import { isRegularFile, statAt } from "../sys/stat.ts";
import { checkPath } from "../arguments.ts";
import { inspect } from "../devices.ts";
import { quote } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { hasSysfs } from "../kernel/loop_sysfs.ts";
import { AT_FDCWD } from "../sys/libc.ts";
import { warn } from "./output.ts";

/** Warns of what a device leaves out of the file that it was attached to. */
export function warnOfRest(loop: Loop, file: string | URL): void {
  const path = checkPath(file);
  const stat = statAt(AT_FDCWD, path.bytes);
  if (typeof stat === "number" || !isRegularFile(stat)) return;
  const info = loop.getInfo();
  // A path that sysfs tells may lead to another file from here.
  if (BigInt(stat.device) !== info.device || stat.inode !== info.inode) return;
  const name = quote(path.text);
  const { offset, sizelimit } = info;
  if (offset !== 0n && offset >= stat.size) {
    warn(
      `offset ${offset} is past the end of ${name}, which has ${stat.size} bytes: the device is empty`,
    );
    return;
  }
  const rest = stat.size - offset;
  const used = sizelimit !== 0n && sizelimit < rest ? sizelimit : rest;
  if (used === 0n) {
    warn(`${name} has no bytes: the device is empty`);
    return;
  }
  const blockSize = BigInt(loop.getBlockSize());
  const tail = used % blockSize;
  if (tail === 0n) return;
  const which = used < blockSize ? "the" : "the last";
  warn(
    `${which} ${tail} bytes of ${name} fill no block of ${blockSize} bytes: they cannot be read or written through the device`,
  );
}

/** The same of a device that was attached before; nothing where nobody tells its file. */
export function warnOfRestOfAttached(loop: Loop): void {
  if (!hasSysfs()) return;
  const device = inspect(loop.minor);
  if (device !== undefined && !device.deleted) {
    warnOfRest(loop, device.backingFile);
  }
}
