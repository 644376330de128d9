/**
 * How long detaching stops the event loop while there is 1 GiB to write back: the
 * longest pause between two turns of a timer that wants one every millisecond.
 */
import { attach } from "@loopdev/loopdev";

const GiB = 2 ** 30;

/** Measures the pauses until it is stopped. */
function measurePauses(): () => number {
  let last = performance.now();
  let longest = 0;
  const timer = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  }, 1);
  return () => {
    clearInterval(timer);
    return Math.max(longest, performance.now() - last);
  };
}

async function measure(directory: string, autoclear: boolean): Promise<void> {
  const path = await Deno.makeTempFile({ dir: directory, suffix: ".img" });
  try {
    await Deno.truncate(path, GiB);
    const device = await attach(path, { autoclear });
    using file = await Deno.open(device.path, { write: true });
    const chunk = new Uint8Array(16 * 2 ** 20).fill(1);
    for (let written = 0; written < GiB; written += chunk.length) {
      await file.write(chunk);
    }
    file.close();
    const stop = measurePauses();
    const start = performance.now();
    await device.detach();
    const took = performance.now() - start;
    const longest = stop();
    console.log(
      `${directory}, ${autoclear ? "" : "without "}autoclear: detached in ${
        took.toFixed(0)
      } ms, the event loop stopped for ${longest.toFixed(0)} ms at most`,
    );
  } finally {
    await Deno.remove(path);
  }
}

for (const directory of Deno.args.length > 0 ? Deno.args : ["/tmp"]) {
  await measure(directory, true);
  await measure(directory, false);
}
