/**
 * Writes to devices while others detach them: opens the node, writes a block, closes,
 * over and over, and reports which writes were complete, their close included.
 *
 * A line of input is `minor run`. The answer is `started` after the first
 * write, and then the blocks as JSON once the device is not that binding any more.
 */
import { Loop, LoopError } from "@loopdev/loopdev";
import { bindingOf } from "../../lib/kernel/loop_sysfs.ts";
import { pwrite } from "../../lib/sys/libc.ts";

/** How many blocks the device has. */
export const BLOCKS = 64;
/** Bytes of a block. */
export const BLOCK = 4096;

/** The content of a block: the number of the write. */
export function content(run: number, write: number): Uint8Array {
  const block = new Uint32Array(BLOCK / 4);
  return new Uint8Array(block.fill(run * 65536 + write).buffer);
}

/** Writes until the device is gone. Gives the last complete write of each block; `null` when a later one was not. */
function writeUntilGone(
  minor: number,
  run: number,
): Record<number, number | null> {
  const blocks: Record<number, number | null> = {};
  const binding = bindingOf(minor);
  for (let write = 1;; write++) {
    const block = write % BLOCKS;
    let loop;
    try {
      loop = new Loop(minor);
    } catch (error) {
      if (error instanceof LoopError) return blocks;
      throw error;
    }
    const ours = bindingOf(minor) === binding;
    const written = ours
      ? pwrite(loop.fd, content(run, write), block * BLOCK)
      : 0;
    loop.close();
    if (!ours) return blocks;
    if (written !== BLOCK) return { ...blocks, [block]: null };
    blocks[block] = write;
    if (write === 1) console.log("started");
  }
}

if (import.meta.main) {
  const decoder = new TextDecoder();
  let input = "";
  for await (const chunk of Deno.stdin.readable) {
    input += decoder.decode(chunk, { stream: true });
    for (let end; (end = input.indexOf("\n")) >= 0;) {
      const [minor, run] = input.slice(0, end).split(" ").map(Number);
      input = input.slice(end + 1);
      console.log(JSON.stringify(writeUntilGone(minor!, run!)));
    }
  }
}
