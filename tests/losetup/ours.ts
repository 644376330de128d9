/** Runs our losetup in this process. */
import { fromBytes } from "../../lib/losetup/byte_string.ts";
import { losetup } from "../../lib/losetup/losetup.ts";
import type { Output } from "../device/support.ts";

/** Returns its output, with one character for each byte, and its exit status. */
export async function ours(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Output> {
  let stdout = "";
  let stderr = "";
  const code = await losetup(args, {
    stdout: (bytes) => stdout += fromBytes(bytes),
    stderr: (bytes) => stderr += fromBytes(bytes),
    variable: (name) => env[name],
  });
  return { code, stdout, stderr };
}
