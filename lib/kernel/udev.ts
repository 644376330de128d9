/** Detects udev, which opens every device that appears or changes. */
import { AT_FDCWD, cString } from "../sys/libc.ts";
import { statAt } from "../sys/stat.ts";
import { readLink } from "../sys/sysfs.ts";

/** Returns `true` if udev runs in this mount namespace. */
export function isUdevRunning(): boolean {
  return typeof statAt(AT_FDCWD, cString("/run/udev/control")) !== "number";
}

/** Name of the initial PID namespace: `PROC_PID_INIT_INO` in `linux/proc_ns.h`. */
const INITIAL_PID_NAMESPACE = "pid:[4026531836]";

/**
 * Returns `true` if udev may open devices. A container cannot see the udev of its host.
 */
export function mayUdevRun(): boolean {
  return readLink("/proc/self/ns/pid") !== INITIAL_PID_NAMESPACE ||
    isUdevRunning();
}
