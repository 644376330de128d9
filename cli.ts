/**
 * The command line: `loopdev <command> [options]`.
 *
 * ```sh
 * deno run --allow-ffi jsr:@loopdev/loopdev/cli attach disk.img
 * deno install --global --allow-ffi --allow-run --name loopdev jsr:@loopdev/loopdev/cli
 * ```
 *
 * `--allow-run` is for `loopdev run` alone. `loopdev --help` tells the rest.
 *
 * @module
 */
import { main } from "./lib/cli/main.ts";

if (import.meta.main) Deno.exitCode = await main(Deno.args);
