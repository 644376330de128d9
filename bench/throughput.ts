/**
 * Measures reading and writing with fio: our device must be as fast as one attached by
 * losetup.
 */
import { attach } from "@loopdev/loopdev";
import { type Sample, summary } from "./measure.ts";
import type { Findings, Row } from "./result.ts";
import { output, type World } from "./world.ts";

const SIZE = 256 * 2 ** 20;

interface Job {
  readonly title: string;
  readonly unit: "MB/s" | "IOPS";
  readonly options: string[];
}

const SEQUENTIAL = ["--bs=1M", "--iodepth=4"];
const RANDOM = ["--bs=4k", "--iodepth=16"];
const JOBS: Job[] = [
  {
    title: "sequential read",
    unit: "MB/s",
    options: ["--rw=read", ...SEQUENTIAL],
  },
  {
    title: "sequential write",
    unit: "MB/s",
    options: ["--rw=write", ...SEQUENTIAL],
  },
  { title: "random read", unit: "IOPS", options: ["--rw=randread", ...RANDOM] },
  {
    title: "random write",
    unit: "IOPS",
    options: ["--rw=randwrite", ...RANDOM],
  },
];

/** Measures sequential and random access, with and without the page cache. */
export async function throughputCase(world: World): Promise<Findings> {
  try {
    output("fio", "--version");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    world.remarks.push("Throughput is left out: fio is not installed");
    return { rows: [] };
  }
  // Both use the same image, so that its place on the disk is the same.
  const file = world.image(world.disk, SIZE);
  output("fallocate", "--length", String(SIZE), file);
  const seconds = world.times(2, 1);
  // Written first, because blocks that were never written are not read from the disk.
  for (const use of [onOurs, onTheirs]) {
    await use(file, false, (path) => fio(path, false, JOBS[1]!, seconds));
  }
  output("cp", file, "/dev/null"); // fill the page cache
  const rows: Row[] = [];
  for (const direct of [false, true]) {
    for (const job of world.quick ? JOBS.slice(0, 1) : JOBS) {
      const values: Record<string, number[]> = { loopdev: [], losetup: [] };
      for (let round = 0; round < world.times(5, 1); round++) {
        const turns = [
          () => onOurs(file, direct, (path) => fio(path, direct, job, seconds)),
          () =>
            onTheirs(file, direct, (path) => fio(path, direct, job, seconds)),
        ];
        const names = ["loopdev", "losetup"];
        for (const turn of round % 2 === 0 ? [0, 1] : [1, 0]) {
          values[names[turn]!]!.push(await turns[turn]!());
        }
      }
      const samples: Record<string, Sample> = {};
      for (const [name, rates] of Object.entries(values)) {
        samples[name] = summary(rates);
      }
      rows.push({
        id: `throughput ${job.title}${direct ? " direct" : ""}`,
        title: `${job.title}, ${direct ? "direct" : "buffered"}`,
        unit: job.unit,
        samples,
      });
    }
  }
  return { rows };
}

async function onOurs(
  file: string,
  directIo: boolean,
  use: (path: string) => Promise<number>,
): Promise<number> {
  await using device = await attach(file, { directIo });
  return await use(device.path);
}

async function onTheirs(
  file: string,
  direct: boolean,
  use: (path: string) => Promise<number>,
): Promise<number> {
  const path = output(
    "losetup",
    ...["--find", "--show", `--direct-io=${direct ? "on" : "off"}`, file],
  );
  try {
    return await use(path);
  } finally {
    output("losetup", "--detach", path);
  }
}

/** Returns megabytes or operations per second. */
async function fio(
  path: string,
  direct: boolean,
  job: Job,
  seconds: number,
): Promise<number> {
  const { stdout, success } = await new Deno.Command("fio", {
    args: [
      ...["--name=job", `--filename=${path}`, "--output-format=json"],
      ...[`--direct=${Number(direct)}`, "--ioengine=libaio"],
      ...[`--size=${SIZE}`, `--runtime=${seconds}`, "--time_based"],
      ...["--randrepeat=1", "--end_fsync=1", ...job.options],
    ],
    stderr: "inherit",
  }).output();
  if (!success) throw new Error("fio failed");
  const text = new TextDecoder().decode(stdout);
  const { jobs: [result] } = JSON.parse(text.slice(text.indexOf("{")));
  const side = job.options[0]!.includes("read") ? result.read : result.write;
  return job.unit === "MB/s" ? side.bw_bytes / 1e6 : side.iops;
}
