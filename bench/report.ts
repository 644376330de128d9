/** Formats the results for the README. */
import type { Sample } from "./measure.ts";
import type { Figure, Row } from "./result.ts";
import type { Target } from "./targets.ts";

/** All results of a run. */
export interface Report {
  readonly machine: string;
  readonly rows: Row[];
  readonly figures: Figure[];
  readonly targets: Target[];
  readonly remarks: string[];
}

/** Names of the contenders in the columns. */
export const CONTENDERS: Record<string, string> = {
  loopdev: "loopdev",
  C: "C",
  losetup: "losetup",
  original: "the original's calls",
  Go: "Go library",
  Rust: "Rust library",
};

const WHY = `
The 16 ms of the original are not Python's fault, and those of the libraries in Go and
Rust not theirs. \`LOOP_SET_STATUS64\` freezes the queue of the device, and the kernel
waits for an RCU grace period to do so: in any language. loopdev does not do that step
faster, it has no need of it: \`LOOP_CONFIGURE\` sets everything at once. Where a step of
that kind is needed (\`partscan\`, \`persist()\`, changing a device that is attached), it
takes those 16 ms here too. losetup's time is that of starting two processes.`;

const LIMITS = `
## Where it is not the fastest

- A C program that makes the same system calls is faster, as nothing runs between them.
  The calls alone, from TypeScript without the library, take some 1.3 times what they take
  in C: V8 enters C by a trampoline each time. The rest are promises and objects.
- \`list()\` reads eleven files of sysfs for each device, and its disk sequence number
  twice, where losetup reads seven. It also looks twice at each device without a file: a
  hundred of them add 2 ms to \`loopdev list\`.
- \`mount()\` reads the superblock, makes the kernel read it, and writes back on other
  threads, so that a slow file does not stop the event loop.
- Partitions are looked for in a second step where udev may run, because in one step they
  can vanish again. That takes 16 ms.
- Each start of a program in Deno takes longer than all of losetup, and than the five
  programs that \`loopdev run --mount\` replaces. The module is for programs that do more
  than one thing.
- The module is imported in some 20 ms. Half of it is needed to parse the code and look up
  functions of C; the other half, Deno needs to load each file separately. Imported as one
  bundle, it takes 10 ms.
- With more processes than processors, the longest cycles are those in which a process
  lost its processor. It loses it more often during 200 cycles of 70 µs than of 20 µs. It
  seldom has to try another device (in one of twelve cycles of 32 processes).`;

/** Formats a time in microseconds in a suitable unit. */
export function duration(microseconds: number): string {
  if (Number.isNaN(microseconds)) return "–";
  const [value, unit] = microseconds < 1000
    ? [microseconds, "µs"]
    : microseconds < 1e6
    ? [microseconds / 1000, "ms"]
    : [microseconds / 1e6, "s"];
  return `${
    value < 100 ? Number(value.toPrecision(2)) : Math.round(value)
  } ${unit}`;
}

/** Formats the page of all results. */
export function markdown(report: Report): string {
  return [
    "# Speed",
    "![Attaching and detaching, and listing devices, on a logarithmic scale](speed.svg)",
    `Medians, measured by turns in one run of \`deno task bench\`: ${report.machine}.`,
    ...tables(report),
    "## Why",
    WHY.trim(),
    LIMITS.trim(),
    "## Targets",
    goals(report.targets),
    ...report.remarks.map((remark) => `${remark}.`),
  ].join("\n\n");
}

/** Rows for the README. */
const SUMMARY = [
  "attach memory",
  "attach disk",
  "all",
  "list 64",
  "find 64",
];

/** Formats the table for the README. */
export function summary(report: Report): string {
  const rows = SUMMARY.map((id) => report.rows.find((row) => row.id === id))
    .filter((row) => row !== undefined);
  return times(rows);
}

/** Formats the results for the terminal. */
export function text(report: Report): string {
  return [
    report.machine,
    ...tables(report),
    goals(report.targets),
    ...report.remarks,
  ].filter((part) => part !== "").join("\n\n");
}

function tables({ rows }: Report): string[] {
  return [
    times(rows.filter((row) => row.unit === "µs" && !isApart(row))),
    processes(rows.filter(({ id }) => id.startsWith("processes"))),
    stops(rows.filter(({ id }) => id.startsWith("stop"))),
    throughput(rows.filter(({ unit }) => unit !== "µs")),
    start(rows.find(({ id }) => id === "start")),
  ].filter((table) => table !== "");
}

/** Returns `true` for rows that have their own table. */
function isApart({ id }: Row): boolean {
  return id.startsWith("processes") || id.startsWith("stop") || id === "start";
}

function table(heads: string[], lines: string[][]): string {
  if (lines.length === 0) return "";
  return [heads, heads.map((_, index) => index === 0 ? "---" : "--:"), ...lines]
    .map((cells) => `| ${cells.join(" | ")} |`)
    .join("\n");
}

function times(rows: Row[]): string {
  const names = Object.keys(CONTENDERS)
    .filter((name) => rows.some(({ samples }) => name in samples));
  return table(
    ["", ...names.map((name) => CONTENDERS[name]!)],
    rows.map(({ title, samples, calls }) => [
      title,
      ...names.map((name) => {
        const sample = samples[name];
        if (sample === undefined) return "";
        const counted = calls?.[name];
        const time = duration(sample.median) +
          (counted === undefined ? "" : `, ${counted} calls`);
        const own = samples["loopdev"]?.median;
        if (name === "loopdev" || own === undefined) return time;
        return `${time} (${timesAs(sample.median / own)})`;
      }),
    ]),
  );
}

/** Formats a ratio: `41 ×`. */
function timesAs(ratio: number): string {
  return `${
    ratio < 10 ? ratio.toFixed(ratio < 2 ? 2 : 1) : Math.round(ratio)
  } ×`;
}

/** Formats the longest waits of many processes, which medians do not show. */
function processes(rows: Row[]): string {
  const cell = (sample: Sample): string => {
    const { failures, count, median, p99, most } = sample;
    const failed = failures === 0
      ? ""
      : `, ${failures} of ${count + failures} failed`;
    return count === 0
      ? "all failed"
      : `${duration(median)}, ${duration(p99)}, ${duration(most)}${failed}`;
  };
  const names = ["loopdev", "C", "losetup", "original"];
  return table(
    [
      "attach and detach: median, 99th percentile, longest",
      ...names.map((name) => CONTENDERS[name]!),
    ],
    rows.map(({ title, samples }) => [
      title,
      ...names.map((name) =>
        samples[name] === undefined ? "" : cell(samples[name])
      ),
    ]),
  );
}

function stops(rows: Row[]): string {
  return table(
    ["longest stop of the event loop", ""],
    rows.map(({ title, samples }) => [
      title,
      duration(samples["loopdev"]!.median),
    ]),
  );
}

function throughput(rows: Row[]): string {
  const rate = (sample: Sample | undefined, unit: string): string =>
    sample === undefined ? "" : `${Math.round(sample.median)} ${unit}`;
  return table(
    ["fio on a device attached by", "loopdev", "losetup", ""],
    rows.map(({ title, unit, samples: { loopdev, losetup } }) => [
      title,
      rate(loopdev, unit),
      rate(losetup, unit),
      timesAs((loopdev?.median ?? NaN) / (losetup?.median ?? NaN)),
    ]),
  );
}

function start(row: Row | undefined): string {
  if (row === undefined) return "";
  const names: Record<string, string> = {
    empty: "an empty program",
    import: "one that imports the module",
    version: "`loopdev --version`, as installed",
    list: "`loopdev list`, 8 devices",
    "losetup -l": "the drop-in `losetup -l`, 8 devices",
    losetup: "`losetup --version`",
  };
  const empty = row.samples["empty"]?.median ?? NaN;
  return table(
    ["from start to end", "", "over empty"],
    Object.entries(row.samples).map(([name, { median }]) => [
      names[name] ?? name,
      duration(median),
      ["empty", "losetup"].includes(name)
        ? ""
        : `${duration(median - empty)} (${timesAs(median / empty)})`,
    ]),
  );
}

function goals(targets: Target[]): string {
  return table(
    ["target", "wanted", "measured", ""],
    targets.map(({ what, wanted, measured, met }) => [
      what,
      wanted,
      measured,
      met ? "met" : "**not met**",
    ]),
  );
}
