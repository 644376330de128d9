/**
 * A drop-in for losetup of util-linux 2.38.
 *
 * @module
 */
import { main } from "./lib/losetup/program.ts";

if (import.meta.main) Deno.exitCode = await main(Deno.args);
