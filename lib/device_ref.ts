/** How callers name a device. */
import { checkMinor } from "./arguments.ts";
import { quote, StaleDeviceError } from "./errors.ts";
import { locate, minorOfNode } from "./kernel/loop.ts";
import { diskSequenceOf, isBound } from "./kernel/loop_sysfs.ts";

/**
 * A loop device: its path (`/dev/loop3`), name (`loop3`) or number, or what
 * {@linkcode list} gives. With a disk sequence number its identity is checked: a
 * device that was recycled meanwhile is left alone.
 */
export type DeviceRef =
  | string
  | number
  | { readonly minor: number; readonly diskSequence?: number };

/** The number of the device that is meant. Nothing is opened. */
export function minorOf(device: DeviceRef): number {
  if (typeof device === "string") {
    const place = locate(device);
    return "minor" in place ? place.minor : minorOfNode(place.node);
  }
  return checkMinor(
    typeof device === "object" && device !== null ? device.minor : device,
  );
}

/** The disk sequence number in a reference, where it has one. */
export function sequenceIn(device: DeviceRef): number | undefined {
  if (typeof device !== "object" || device === null) return undefined;
  const { diskSequence } = device;
  if (diskSequence === undefined) return undefined;
  if (typeof diskSequence !== "number") {
    throw new TypeError(
      `Cannot use ${String(diskSequence)} as diskSequence: it must be a number`,
    );
  }
  if (!Number.isSafeInteger(diskSequence) || diskSequence < 0) {
    throw new RangeError(
      `Cannot use ${diskSequence} as diskSequence: it must be an integer, 0 or more`,
    );
  }
  return diskSequence || undefined; // 0 before Linux 5.15
}

/** Throws when a device, by what sysfs says, is bound to something else than what the reference means. */
export function checkNotRecycled(action: string, device: DeviceRef): void {
  const expected = sequenceIn(device);
  const minor = minorOf(device);
  if (expected === undefined || !isBound(minor)) return;
  const actual = diskSequenceOf(minor);
  if (actual !== undefined && actual !== expected) {
    throw recycled(action, `/dev/loop${minor}`);
  }
}

/** The error for a device that is bound to something else by now. */
export function recycled(action: string, path: string): StaleDeviceError {
  return new StaleDeviceError(
    `Cannot ${action} ${quote(path)}`,
    path,
    "it is bound to something else by now",
  );
}
