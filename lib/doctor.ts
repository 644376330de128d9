/** Diagnoses why loop devices do not work. */

import type { Check } from "./doctor_checks.ts";

export type { Check } from "./doctor_checks.ts";

/**
 * Diagnoses why loop devices do not work on this system, and suggests remedies.
 *
 * Problems come first, beginning with the cause of the others, then warnings, then
 * checks that passed. Attaching can work if there is no problem. Nothing is changed:
 * everything opened is closed again, and no ioctl that affects a device is issued.
 * Requires `--allow-ffi`; missing privileges are reported, not required.
 *
 * @returns One entry for each check.
 *
 * @example Check the system before running a test suite
 * ```ts
 * import { doctor } from "@loopdev/loopdev";
 *
 * const [first] = await doctor();
 * if (first?.status === "problem") console.log(first.finding, first.remedy);
 * ```
 */
export async function doctor(): Promise<Check[]> {
  // Loaded on demand: most programs never need it.
  const { diagnose } = await import("./doctor_checks.ts");
  return await diagnose();
}
