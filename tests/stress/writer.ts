/**
 * Writes to devices while other processes detach them: opens the node, writes a block
 * and closes it, repeatedly, and reports the writes that were complete, including their
 * close.
 *
 * An input line is `minor run`. The answers are `started` after the first
 * write, and the blocks as JSON once the device no longer has that binding.
 */
import { Loop, LoopError } from "@loopdev/loopdev";
import { bindingOf } from "../../lib/kernel/loop_sysfs.ts";
import { pwrite } from "../../lib/sys/libc.ts";

/** Number of blocks of the device. */
export const BLOCKS = 64;
/** Size of a block in bytes. */
export const BLOCK = 4096;

/** Returns the content of a block, which encodes the number of the write. */
export function content(run: number, write: number): Uint8Array {
  const block = new Uint32Array(BLOCK / 4);
  return new Uint8Array(block.fill(run * 65536 + write).buffer);
}

/**
 * Writes until the device is detached. Returns the last complete write of each block,
 * or `null` if a later one was incomplete.
 */
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
