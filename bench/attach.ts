/** Measures attaching and detaching repeatedly in one process. */
import type { AttachOptions } from "@loopdev/loopdev";
import { buildC, buildGo, buildRust } from "./build.ts";
import type { OwnDevices } from "./devices.ts";
import { alternate, type Contender } from "./measure.ts";
import { denoArguments, loopdev, Program } from "./program.ts";
import type { Findings, Row } from "./result.ts";
import type { Directory, World } from "./world.ts";

const HERE = new URL(".", import.meta.url).pathname;
/** Number of cycles after which V8 has optimized the calls. */
export const WARM_UP = 3000;

/** Measures without options, beside every contender that supports it. */
export async function attachCase(world: World): Promise<Findings> {
  const rules = buildC("attach");
  const losetup = buildC("losetup");
  const go = world.tryToBuild("The Go library", buildGo);
  const rust = world.tryToBuild("The Rust library", buildRust);
  const rows: Row[] = [];
  for (const directory of [world.memory, world.disk]) {
    for (const overlap of ["lock", "allow"] as const) {
      const file = world.image(directory);
      const ours = ["attach", file, JSON.stringify({ overlap })];
      await using programs = new AsyncDisposableStack();
      const start = (command: string, ...args: string[]): Program =>
        programs.use(new Program(command, ...args));
      // Short turns, so that other load on the machine affects all contenders alike.
      const fast = 100;
      const contenders: Contender[] = [
        programs.use(loopdev(...ours)).as("loopdev", fast, WARM_UP),
        start(rules, file, overlap).as("C", fast, 100),
      ];
      if (overlap === "lock") {
        contenders.push(
          start(losetup, file).as("losetup", 5),
          start("python3", `${HERE}original.py`, file).as("original", 2),
        );
        if (go !== undefined) contenders.push(start(go, file).as("Go", 2));
        if (rust !== undefined) {
          contenders.push(start(rust, file).as("Rust", 2));
        }
      }
      const place = directory === world.memory ? "memory" : "disk";
      rows.push({
        id: `attach ${place}${overlap === "lock" ? "" : " allow"}`,
        title: `attach and detach, ${directory.type}${
          overlap === "lock" ? "" : ', `overlap: "allow"`'
        }`,
        unit: "µs",
        samples: await alternate(contenders, world.times(120, 10)),
        calls: world.countCalls({
          loopdev: [
            Deno.execPath(),
            ...denoArguments("loopdev.ts"),
            ...ours,
          ],
          C: [rules, file, overlap],
        }),
      });
    }
  }
  return { rows };
}

const OPTIONS = {
  offset: 65536,
  sizelimit: 524288,
  blockSize: 4096,
  readOnly: true,
  directIo: true,
  reference: "benchmark",
} satisfies AttachOptions;
/** `LO_FLAGS_READ_ONLY | LO_FLAGS_DIRECT_IO`. */
const FLAGS = 1 | 16;

/**
 * Measures with all options. Partition scanning is separate, because it is a second
 * step.
 */
export async function optionsCase(world: World): Promise<Findings> {
  const rules = buildC("attach");
  const losetup = buildC("losetup");
  const disk: Directory = world.disk;
  const file = world.image(disk);
  const { offset, sizelimit, blockSize, reference } = OPTIONS;
  const losetupOptions = [
    `--offset=${offset}`,
    `--sizelimit=${sizelimit}`,
    `--sector-size=${blockSize}`,
    "--read-only",
    "--direct-io=on",
  ];
  const measure = async (
    options: AttachOptions,
    flags: string[],
    others: Program[],
  ): Promise<Row["samples"]> => {
    await using programs = new AsyncDisposableStack();
    const ours = loopdev("attach", file, JSON.stringify(options));
    const isSlow = options.partscan === true;
    const contenders = [
      programs.use(ours).as(
        "loopdev",
        isSlow ? 2 : 100,
        isSlow ? 10 : WARM_UP,
      ),
      ...others.map((other) => programs.use(other).as("C", 100, 100)),
      programs.use(new Program(losetup, file, ...losetupOptions, ...flags))
        .as("losetup", 5),
    ];
    return await alternate(contenders, world.times(80, 5));
  };
  return {
    rows: [{
      id: "options",
      title: `the same with all options, ${disk.type}`,
      unit: "µs",
      samples: await measure(OPTIONS, [], [
        new Program(
          rules,
          file,
          "lock",
          ...[offset, sizelimit, blockSize, FLAGS].map(String),
          reference,
        ),
      ]),
    }, {
      id: "partscan",
      title: "and partition scanning",
      unit: "µs",
      samples: await measure(
        { ...OPTIONS, partscan: true },
        ["--partscan"],
        [],
      ),
    }],
  };
}

/** Measures many devices attached at a time by one process. */
export async function manyCase(world: World): Promise<Findings> {
  const count = world.times(256, 32);
  const losetup = buildC("losetup");
  const file = world.image(world.memory);
  await using own = world.ownDevices();
  own.add(count);
  const minors = own.minors.map(String);
  await using ours = loopdev("many", file, ...minors);
  await using theirs = new Program(
    losetup,
    file,
    "--devices",
    ...minors.map((minor) => `/dev/loop${minor}`),
  );
  const samples = await alternate([
    ours.as("loopdev", 1, Math.ceil(WARM_UP / count)),
    theirs.as("losetup", 1),
  ], world.times(10, 2));
  return {
    rows: [{
      id: "many",
      title: `${count} devices attached, then detached: each`,
      unit: "µs",
      samples,
    }, await attachAllRow(world, own)],
  };
}

/** Measures `attachAll()` of a thousand files. */
async function attachAllRow(world: World, own: OwnDevices): Promise<Row> {
  const count = world.times(1000, 64);
  own.add(Math.max(0, count - own.minors.length));
  const files = Array.from({ length: count }, () => world.image(world.memory));
  await using all = loopdev("all", ...files);
  return {
    id: "all",
    title: `\`attachAll()\` of ${count} files, then detached: each`,
    unit: "µs",
    samples: await alternate([
      all.as("loopdev", 1, Math.ceil(WARM_UP / count)),
    ], world.times(10, 2)),
  };
}
