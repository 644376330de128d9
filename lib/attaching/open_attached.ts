/** Opens an attached device and verifies its identity. */
import {
  type DeviceRef,
  minorOf,
  recycled,
  sequenceIn,
} from "../device_ref.ts";
import { LoopError, quote } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import { bindingOf } from "../kernel/loop_sysfs.ts";
import { openDevice } from "../kernel/nodes.ts";
import { ENXIO } from "../sys/errno.ts";
import type { LoopInfo64 } from "../sys/loop_uapi.ts";
import type { BoundFile } from "./bound_loop.ts";
import { isErrno, sequenceOf } from "./release.ts";

/**
 * Opens an attached device and verifies that it is still the binding `device` refers
 * to.
 */
export function openAttached(
  device: DeviceRef,
  action: string,
  backing?: BoundFile,
): Loop {
  const expected = sequenceIn(device);
  // Opened for reading, because udev examines a device again after it was open for
  // writing.
  const loop = openDevice(
    typeof device === "string" ? device : minorOf(device),
    { readOnly: true },
  );
  try {
    const info = boundInfo(loop, action);
    const actual = sequenceOf(loop);
    if (expected !== undefined && actual !== undefined) {
      if (actual !== expected) throw recycled(action, loop.path);
    } else if (backing !== undefined) {
      const { device, inode, binding } = backing;
      const isSame = info.device === device && info.inode === inode &&
        (binding === undefined || binding === bindingOf(loop.minor));
      if (!isSame) throw recycled(action, loop.path);
    }
    return loop;
  } catch (error) {
    loop.close();
    throw error;
  }
}

function boundInfo(loop: Loop, action: string): LoopInfo64 {
  try {
    return loop.getInfo();
  } catch (error) {
    if (!isErrno(error, ENXIO)) throw error;
    throw new LoopError(`Cannot ${action} ${quote(loop.path)}`, {
      errno: ENXIO,
      operation: "LOOP_GET_STATUS64",
      path: loop.path,
      hint: "no file is attached to it",
    });
  }
}
