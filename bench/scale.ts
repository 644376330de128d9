/**
 * Measures whether time and memory per device stay constant with thousands of devices
 * in one process. As root:
 *
 *     deno task bench:scale [COUNT]
 */
import { attach, find, list } from "@loopdev/loopdev";
import { median } from "./measure.ts";
import { World } from "./world.ts";

const STEPS = 4;

/** Time and memory of one step, per device. */
interface Step {
  readonly devices: number;
  /** Time in microseconds. */
  readonly attach: number;
  readonly list: number;
  readonly find: number;
  detach: number;
  /** Memory in KiB. */
  readonly process: number;
  readonly kernel: number;
}

declare const gc: (() => void) | undefined;

/** Returns the KiB of objects of this process, and of structures of the kernel. */
function memory(): { process: number; kernel: number } {
  gc?.();
  const info = Deno.readTextFileSync("/proc/meminfo");
  const kibibytes = (name: string): number =>
    Number(new RegExp(`^${name}: +(\\d+)`, "m").exec(info)?.[1]);
  const { heapUsed, external } = Deno.memoryUsage();
  return {
    process: (heapUsed + external) / 1024,
    kernel: kibibytes("Slab") + kibibytes("Percpu"),
  };
}

/** Returns the time of an operation in microseconds. */
async function timed(work: () => unknown): Promise<number> {
  const start = performance.now();
  await work();
  return (performance.now() - start) * 1000;
}

/** Returns the median time of some runs in microseconds. */
async function mostly(work: () => unknown): Promise<number> {
  const times: number[] = [];
  for (let run = 0; run < 5; run++) times.push(await timed(work));
  return median(times);
}

async function measure(world: World, count: number): Promise<Step[]> {
  const own = world.ownDevices();
  const warmUp = world.image(world.memory);
  own.add(1);
  for (let cycle = 0; cycle < 3000; cycle++) {
    await using _device = await attach(warmUp, { minor: own.minors[0]! });
  }
  const attached: AsyncDisposable[] = [];
  const steps: Step[] = [];
  const images = Array.from({ length: count }, () => world.image(world.memory));
  const before = memory();
  for (let step = STEPS - 1; step >= 0; step--) {
    const goal = Math.round(count / 2 ** step);
    const from = attached.length;
    own.add(goal + 1 - own.minors.length);
    const attach = await timed(async () => {
      for (let index = from; index < goal; index++) {
        attached.push(
          await world.attach(images[index]!, { minor: own.minors[index + 1]! }),
        );
      }
    });
    const after = memory();
    const listing = await mostly(list);
    const finding = await mostly(() => find(images[goal - 1]!));
    steps.push({
      devices: goal,
      attach: attach / (goal - from),
      list: listing / goal,
      find: finding / goal,
      detach: NaN,
      process: (after.process - before.process) / goal,
      kernel: (after.kernel - before.kernel) / goal,
    });
  }
  for (const [index, step] of [...steps.entries()].reverse()) {
    const rest = steps[index - 1]?.devices ?? 0;
    const detach = await timed(async () => {
      while (attached.length > rest) {
        await attached.pop()![Symbol.asyncDispose]();
      }
    });
    step.detach = detach / (step.devices - rest);
  }
  console.error(`removing ${own.minors.length} devices`);
  const removal = await timed(() => own[Symbol.asyncDispose]());
  console.error(`removed in ${(removal / 1e6).toFixed(1)} s`);
  return steps;
}

function print(steps: Step[]): void {
  const columns: [string, keyof Step][] = [
    ["devices", "devices"],
    ["attach µs", "attach"],
    ["list µs", "list"],
    ["find µs", "find"],
    ["detach µs", "detach"],
    ["process KiB", "process"],
    ["kernel KiB", "kernel"],
  ];
  const width = 12;
  console.log(columns.map(([title]) => title.padStart(width)).join(""));
  for (const step of steps) {
    console.log(
      columns.map(([, key]) =>
        step[key].toFixed(key === "devices" ? 0 : 1).padStart(width)
      ).join(""),
    );
  }
}

if (import.meta.main) {
  const count = Number(Deno.args[0] ?? 4096);
  await using world = new World(false);
  const interrupt = async (): Promise<void> => {
    await world[Symbol.asyncDispose]();
    Deno.exit(130);
  };
  Deno.addSignalListener("SIGINT", interrupt);
  Deno.addSignalListener("SIGTERM", interrupt);
  print(await measure(world, count));
  Deno.removeSignalListener("SIGINT", interrupt);
  Deno.removeSignalListener("SIGTERM", interrupt);
}
