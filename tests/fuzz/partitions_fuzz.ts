/**
 * Reads damaged partition tables: `partitions_fuzz.ts [COUNT [SEED]]`.
 *
 * Prints the seed and the results. Exits with status 1 if a result was wrong: an error
 * other than `DamagedTable`, a partition that is not on the disk, an unreported
 * overlap, too many partitions, or too long a time. Table N of seed S is table 0 of
 * seed S + N, so `partitions_fuzz.ts 1 SEED` repeats a reported table.
 *
 * The tables are read in a worker, so that one that never ends is noticed. Run it with
 * `--allow-read`, which Deno requires for the worker.
 */
import type { Result, Task } from "./partitions_worker.ts";

/** Time in milliseconds after which a table is considered endless. */
const WATCH_INTERVAL = 5000;

/** Runs the worker, and reports the table at which it hangs. */
function runWorker(count: number, seed: number): Promise<Result> {
  const { promise, resolve, reject } = Promise.withResolvers<Result>();
  const progress = new Int32Array(new SharedArrayBuffer(4)).fill(-1);
  const worker = new Worker(
    new URL("partitions_worker.ts", import.meta.url),
    { type: "module" },
  );
  let before = -1;
  const watch = setInterval(() => {
    const now = Atomics.load(progress, 0);
    if (now >= 0 && now === before) {
      reject(new Error(`seed ${seed + now}: it does not end`));
    }
    before = now;
  }, WATCH_INTERVAL);
  worker.onmessage = ({ data }) => resolve(data);
  worker.onerror = (event) => reject(new Error(event.message));
  const task: Task = { count, seed, progress };
  worker.postMessage(task);
  return promise.finally(() => {
    clearInterval(watch);
    worker.terminate();
  });
}

async function main(args: string[]): Promise<number> {
  const count = Number(args[0] ?? 100_000);
  const seed = Number(args[1] ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`seed ${seed}, ${count} tables`);
  try {
    const { outcomes, sealed, slowest, violations } = await runWorker(
      count,
      seed,
    );
    for (const [outcome, times] of [...outcomes].sort()) {
      console.log(`${outcome}: ${times}`);
    }
    console.log(`checksums made right: ${sealed}`);
    console.log(`slowest: ${slowest.toFixed(1)} ms`);
    for (const violation of violations.slice(0, 10)) console.error(violation);
    return violations.length > 0 ? 1 : 0;
  } catch (error) {
    console.error((error as Error).message);
    return 1;
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
