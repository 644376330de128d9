/** Why loop devices do not work here, and what to do about it. */

import type { Check } from "./doctor_checks.ts";

export type { Check } from "./doctor_checks.ts";

/**
 * Tells why loop devices do not work here, and what to do about it.
 *
 * Problems come first, and the one that is the cause of the others first of all; then
 * warnings, then what is well. Attaching can work when there is no problem. Nothing is
 * changed: what is opened is closed, no ioctl is made that could act on a device.
 * Requires `--allow-ffi`; rights are what is examined.
 *
 * @returns One entry for each thing that was looked at.
 * @example Before a test suite
 * ```ts
 * import { doctor } from "@loopdev/loopdev";
 *
 * const [first] = await doctor();
 * if (first?.status === "problem") console.log(first.finding, first.remedy);
 * ```
 */
export async function doctor(): Promise<Check[]> {
  // Loaded when it is needed: most programs never do.
  const { diagnose } = await import("./doctor_checks.ts");
  return await diagnose();
}
