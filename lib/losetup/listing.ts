/** Which devices there are, and how they are told. */
import { type Stat, statAt } from "../sys/stat.ts";
import { overlap } from "../attaching/overlap.ts";
import { AT_FDCWD, cString } from "../sys/libc.ts";
import { listDirectory } from "../sys/sysfs.ts";
import { type ByteString, toCString } from "./byte_string.ts";
import type { Column } from "./columns.ts";
import { Device, isLoopNode } from "./device.ts";
import { canonicalPath } from "./paths.ts";
import { formatTable, type TableStyle } from "./table.ts";

/** The devices to which a file is attached, in the order in which sysfs has them. Those without a node are hidden. */
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

/** The devices to which a file is attached, and at that offset where one is given. */
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

/** Tells the file by device and inode; where those are not known, by its name. */
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

/** The device that shows some of the bytes already, the first that is found; and whether it shows exactly those. */
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

/** A line of the old format; `undefined` when no file is attached. */
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

/** The devices as a table. */
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
