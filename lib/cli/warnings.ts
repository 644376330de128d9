/** Warns about a file that the user may not have meant to attach like this. */
import { checkPath } from "../arguments.ts";
import { overlap } from "../attaching/overlap.ts";
import { find, inspect } from "../devices.ts";
import { LoopError, quote } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { hasSysfs } from "../kernel/loop_sysfs.ts";
import { AT_FDCWD } from "../sys/libc.ts";
import { isRegularFile, statAt } from "../sys/stat.ts";
import { formatOf, HEAD_SIZE } from "./image_formats.ts";
import { warn } from "./output.ts";

/** Warns about a file that has just been attached to a device. */
export function warnAboutFile(loop: Loop, file: string | URL): void {
  // A file of another format rarely ends with a whole block, which is not its problem.
  if (!warnAboutFormat(loop, file)) warnOfRest(loop, file);
  warnAboutOtherDevices(loop, file);
}

/** Warns if the device begins like a compressed file or an image of another format. Returns `true` in that case. */
function warnAboutFormat(loop: Loop, file: string | URL): boolean {
  const head = new Uint8Array(HEAD_SIZE);
  try {
    loop.read(head, 0);
  } catch (error) {
    if (error instanceof LoopError) return false; // an unreadable device is not a reason to fail
    throw error;
  }
  const format = formatOf(head);
  if (format === undefined) return false;
  const { name, remedy } = format;
  warn(
    `${
      nameOf(file)
    } looks like ${name}, and is attached as it is: ${remedy} first`,
  );
  return true;
}

/** Warns if another device shows some of the bytes. */
function warnAboutOtherDevices(loop: Loop, file: string | URL): void {
  const rangeOf = (device: { offset: number; sizelimit: number }) => ({
    start: BigInt(device.offset),
    length: BigInt(device.sizelimit),
  });
  try {
    const own = rangeOf(loop.getStatus());
    const others = find(file).filter((device) =>
      device.minor !== loop.minor && overlap(own, rangeOf(device))
    );
    if (others.length === 0) return;
    const paths = others.map(({ path }) => path).slice(0, 10).join(", ");
    warn(`${nameOf(file)} is also attached to ${paths}`);
  } catch (error) {
    if (!(error instanceof LoopError || error instanceof RangeError)) {
      throw error;
    }
  }
}

function nameOf(file: string | URL): string {
  return quote(checkPath(file).text);
}

/** Warns about bytes of the file that the device leaves out. */
function warnOfRest(loop: Loop, file: string | URL): void {
  const path = checkPath(file);
  const stat = statAt(AT_FDCWD, path.bytes);
  if (typeof stat === "number" || !isRegularFile(stat)) return;
  const info = loop.getInfo();
  // The path in sysfs may lead to another file in this mount namespace.
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

/** Like {@linkcode warnOfRest}, but for a device that was already attached. Does nothing if its file is unknown. */
export function warnOfRestOfAttached(loop: Loop): void {
  if (!hasSysfs()) return;
  const device = inspect(loop.minor);
  if (device !== undefined && !device.deleted) {
    warnOfRest(loop, device.backingFile);
  }
}
