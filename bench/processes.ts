/**
 * Measures many processes that attach to the first free device and detach at the same
 * time.
 */
import { buildC } from "./build.ts";
import { allMinors, removeDevices } from "./devices.ts";
import { type Sample, sampleOf } from "./measure.ts";
import { loopdev, Program } from "./program.ts";
import type { Findings, Row } from "./result.ts";
import type { World } from "./world.ts";

const HERE = new URL(".", import.meta.url).pathname;
const COUNTS = [1, 8, 32, 128];
/** The kernel assigns lower numbers to processes that ask for a free device. */
const FIRST_CHOSEN_NUMBER = 1000;
/** Upper estimate of the memory of a Deno process, in bytes. */
const MEMORY = 80 * 2 ** 20;

/** Measures failures and the longest cycle beside other processes. */
export async function processesCase(world: World): Promise<Findings> {
  const rules = buildC("attach");
  const losetup = buildC("losetup");
  const before = new Set(allMinors());
  const rows: Row[] = [];
  const many: Record<string, [start: (file: string) => Program, full: number]> =
    {
      loopdev: [(file) => loopdev("attach", file), 200],
      C: [(file) => new Program(rules, file, "lock"), 200],
      losetup: [(file) => new Program(losetup, file), 20],
      original: [
        (file) => new Program("python3", `${HERE}original.py`, file),
        5,
      ],
    };
  for (const count of world.quick ? COUNTS.slice(0, 2) : COUNTS) {
    if (Deno.systemMemoryInfo().available < count * MEMORY) {
      world.remarks.push(
        `${count} processes at once are left out: there is not enough memory`,
      );
      continue;
    }
    const samples: Record<string, Sample> = {};
    for (const [name, [start, full]] of Object.entries(many)) {
      const cycles = world.times(full, Math.ceil(full / 10));
      await using programs = new AsyncDisposableStack();
      const all = Array.from(
        { length: count },
        () => programs.use(start(world.image(world.memory))),
      );
      // A process has started once it answers. Start them one by one.
      for (const program of all) {
        await program.run(name === "loopdev" ? 100 : 1);
      }
      const answers = await Promise.all(all.map((one) => one.run(cycles)));
      samples[name] = sampleOf(answers.flat());
    }
    rows.push({
      id: `processes ${count}`,
      title: count === 1 ? "1 process" : `${count} processes at once`,
      unit: "µs",
      samples,
    });
  }
  const added = allMinors()
    .filter((minor) => minor < FIRST_CHOSEN_NUMBER && !before.has(minor));
  await removeDevices(added);
  return { rows };
}
