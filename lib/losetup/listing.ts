/** Lists devices and formats them. */
import { type Stat, statAt } from "../sys/stat.ts";
import { overlap } from "../attaching/overlap.ts";
import { AT_FDCWD, cString } from "../sys/libc.ts";
import { listDirectory } from "../sys/sysfs.ts";
import { type ByteString, toCString } from "./byte_string.ts";
import type { Column } from "./columns.ts";
import { Device, isLoopNode } from "./device.ts";
import { canonicalPath } from "./paths.ts";
import { formatTable, type TableStyle } from "./table.ts";

/**
 * Yields the attached devices in the order of sysfs. Devices without a node are not
 * shown.
 */
export function* usedDevices(): Generator<Device> {
  const names = listDirectory("/sys/block");
  if (typeof names === "number") return;
  for (const name of names) {
    if (!/^loop\d+$/.test(name)) continue;
    const backing = `/sys/block/${name}/loop/backing_file`;
    const path = `/dev/${name}`;
    if (
      typeof statAt(AT_FDCWD, cString(backing)) !== "number" && isLoopNode(path)
    ) yield new Device(path);
  }
}

/** Yields the devices a file is attached to, at the given offset if there is one. */
export function* devicesOf(
  file: ByteString,
  offset: bigint | undefined,
): Generator<Device> {
  const isOver = backingTest(file, [file, canonicalPath(file)]);
  for (const device of usedDevices()) {
    if (!isOver(device)) continue;
    if (offset === undefined || device.offset === offset) yield device;
  }
}

/**
 * Returns a test for the backing file: by device and inode, or by name if those are
 * unknown.
 */
function backingTest(
  file: ByteString,
  names: readonly ByteString[],
): (device: Device) => boolean {
  const found = statAt(AT_FDCWD, toCString(file));
  const stat: Stat | undefined = typeof found === "number" ? undefined : found;
  return (device) => {
    const { backingDevice, info } = device;
    if (stat !== undefined && info !== undefined) {
      return info.inode === stat.inode && backingDevice === stat.device;
    }
    return names.includes(device.backingFile ?? "");
  };
}

/**
 * Returns the first device that already shows some of the bytes, and whether it shows
 * exactly those.
 */
export function findOverlap(
  file: ByteString,
  offset: bigint,
  sizelimit: bigint,
): { device: Device; isEqual: boolean } | undefined {
  const wanted = { start: offset, length: sizelimit };
  const isOver = backingTest(file, [file]);
  for (const device of usedDevices()) {
    if (!isOver(device)) continue;
    const { offset: start, sizelimit: length } = device;
    if (start === undefined || length === undefined) continue;
    const isEqual = start === offset && length === sizelimit;
    if (isEqual || overlap(wanted, { start, length })) {
      return { device, isEqual };
    }
  }
  return undefined;
}

/** Formats a device in the old format. Returns `undefined` if no file is attached. */
export function describe(device: Device): ByteString | undefined {
  const { path, backingFile, info, offset, sizelimit } = device;
  if (backingFile === undefined) return undefined;
  const identity = info === undefined
    ? "[]:"
    : `[${`${device.backingDevice ?? 0}`.padStart(4, "0")}]:${info.inode}`;
  return `${path}: ${identity} (${backingFile})` +
    (offset ? `, offset ${offset}` : "") +
    (sizelimit ? `, sizelimit ${sizelimit}` : "") + "\n";
}

/** Formats the devices as a table. */
export function tabulate(
  devices: Iterable<Device>,
  columns: readonly Column[],
  style: TableStyle,
): ByteString {
  const rows = Array.from(
    devices,
    (device) => columns.map(({ cell }) => cell(device)),
  );
  return formatTable(columns, rows, style);
}
