/**
 * Compares the library with other programs, taking turns in one run. As root:
 *
 *     deno task bench [--quick] [CASE...]
 *
 * A run of all cases writes `results.json`, `docs/SPEED.md`, the table in the README
 * and the plot `docs/speed.svg`. A quick run or a run of some cases only prints.
 */
import { attachCase, manyCase, optionsCase } from "./attach.ts";
import { eventLoopCase } from "./event_loop.ts";
import { listCase, statusCase } from "./list.ts";
import { mountCase } from "./mount.ts";
import { plot } from "./plot.ts";
import { processesCase } from "./processes.ts";
import { markdown, type Report, summary, text } from "./report.ts";
import type { Figure, Findings, Row } from "./result.ts";
import { startCase } from "./start.ts";
import { targets } from "./targets.ts";
import { throughputCase } from "./throughput.ts";
import { output, World } from "./world.ts";

const CASES: Record<string, (world: World) => Promise<Findings>> = {
  attach: attachCase,
  options: optionsCase,
  many: manyCase,
  status: statusCase,
  list: listCase,
  processes: processesCase,
  mount: mountCase,
  throughput: throughputCase,
  stops: eventLoopCase,
  start: startCase,
};

const RESULTS = new URL("results.json", import.meta.url);
const README = new URL("../README.md", import.meta.url);
const SPEED = new URL("../docs/SPEED.md", import.meta.url);
const PLOT = new URL("../docs/speed.svg", import.meta.url);
const MARKED = /(<!-- bench -->\n)[^]*(<!-- \/bench -->)/;

/**
 * Load above which results are unreliable: two programs on one processor take longer,
 * and not all programs equally.
 */
const BUSY = 0.5;

async function measure(world: World, names: string[]): Promise<Report> {
  const [load = 0] = Deno.loadavg();
  if (load > BUSY) {
    world.remarks.push(
      `Other programs were running at the start: the load was ${load}`,
    );
  }
  const rows: Row[] = [];
  const figures: Figure[] = [];
  for (const name of names) {
    console.error(`measuring: ${name}`);
    const findings = await CASES[name]!(world);
    rows.push(...findings.rows);
    figures.push(...findings.figures ?? []);
  }
  return {
    machine: machine(),
    rows,
    figures,
    targets: targets(rows, figures),
    remarks: world.remarks,
  };
}

function machine(): string {
  const kernel = /^\d+\.\d+/.exec(Deno.osRelease())?.[0];
  const losetup = /[\d.]+$/.exec(output("losetup", "--version"))?.[0];
  return `Linux ${kernel} on ${Deno.build.arch} with ${navigator.hardwareConcurrency} processors, Deno ${Deno.version.deno}, losetup ${losetup}`;
}

async function write(report: Report): Promise<void> {
  await Deno.writeTextFile(RESULTS, JSON.stringify(report, undefined, 2));
  await Deno.writeTextFile(PLOT, plot(report));
  await Deno.writeTextFile(SPEED, markdown(report));
  const readme = await Deno.readTextFile(README);
  await Deno.writeTextFile(
    README,
    readme.replace(
      MARKED,
      (_, begin, end) => `${begin}\n${summary(report)}\n${end}`,
    ),
  );
  await new Deno.Command(Deno.execPath(), {
    args: [
      "fmt",
      "--quiet",
      ...[README, SPEED, PLOT].map(({ pathname }) => pathname),
    ],
  }).output();
}

async function main(args: string[]): Promise<number> {
  const quick = args.includes("--quick");
  const chosen = args.filter((arg) => arg !== "--quick");
  const unknown = chosen.find((name) => !Object.hasOwn(CASES, name));
  if (unknown !== undefined) {
    console.error(
      `Cannot measure "${unknown}": the cases are ${
        Object.keys(CASES).join(", ")
      }`,
    );
    return 2;
  }
  await using world = new World(quick);
  const interrupt = async (): Promise<void> => {
    await world[Symbol.asyncDispose]();
    Deno.exit(130);
  };
  Deno.addSignalListener("SIGINT", interrupt);
  Deno.addSignalListener("SIGTERM", interrupt);
  const all = chosen.length === 0;
  const report = await measure(world, all ? Object.keys(CASES) : chosen);
  console.log(text(report));
  if (all && !quick) await write(report);
  Deno.removeSignalListener("SIGINT", interrupt);
  Deno.removeSignalListener("SIGTERM", interrupt);
  return 0;
}

if (import.meta.main) Deno.exitCode = await main(Deno.args);
