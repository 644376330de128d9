/**
 * Runs the tests on other kernels, in QEMU, and prints a table of what came of it:
 *
 *     deno task test:kernels [--all] [--limit=SECONDS] [--suites=NAME,...] [KERNEL[+udev]...]
 *
 * With `--all` also the device tests that come to the same on any kernel; `stress` is a
 * suite that runs when it is asked for.
 *
 * Without arguments: Debian's 6.1 and 6.12, each without udev and with it. A guest that
 * is not done in time is stopped (`--limit`, 450 seconds). The exit status is 0 when
 * every test of every guest passed, and each one that was skipped says why.
 *
 * `guest` (beside this file) boots a kernel; its packages are kept outside of the
 * repository. Two guests run at once where there is room for them.
 */
import { parseArgs } from "@std/cli/parse-args";
import { lines, run as runCommand } from "../device/support.ts";

const PROJECT = new URL("../..", import.meta.url).pathname;
const GUEST = new URL("guest", import.meta.url).pathname;
const GUESTS = ["6.1", "6.12", "6.1+udev", "6.12+udev"];

/** How many times fewer the tests repeat what they repeat (see `tests/device/support.ts`): a guest is that much slower. */
const FEWER = 20;
/** The same for the faults: each run of a program under strace takes seconds there. */
const FEWER_FAULTS = 40;

const DENO = "deno test --allow-all --no-check --cached-only --quiet";
/** On one processor, where that is what matters: QEMU has less to do then, and two guests run at once. */
const ONE = "taskset 1";

/** What runs in each guest. A test command is told where to leave its results. */
const SUITES: Record<string, string> = {
  udev: `${DENO} tests/kernels`,
  demo: `${ONE} deno run --allow-all --no-check --cached-only examples/demo.ts`,
  device: `${ONE} ${DENO} tests/device`,
  faults: `env LOOPDEV_TEST_FEWER=${FEWER_FAULTS} ${ONE} ${DENO} tests/faults`,
  stress: `${DENO} --v8-flags=--expose-gc tests/stress`,
};

/** Without what only takes longer: stress. */
const DEFAULT_SUITES = "udev,demo,device,faults";

/** Begins what the guest says of a suite, in both of its streams. */
const MARK = "\x01";

/** One suite after the other: what they print goes to stderr, and their results to stdout. */
function makeScript(suites: string[]): string {
  const lines = ["uname -r"];
  for (const suite of suites) {
    const command = SUITES[suite]!;
    const results = `$TMPDIR/${suite}.xml`;
    const isTest = command.includes(DENO);
    lines.push(
      `echo '${MARK}${suite}' >&2; SECONDS=0; status=0`,
      `${command}${isTest ? ` --junit-path=${results}` : ""} >&2 || status=$?`,
      `echo "${MARK}${suite} $status $SECONDS"`,
      ...(isTest ? [`cat ${results}`] : []),
    );
  }
  return lines.join("\n");
}

/** A test that did not run, and why, which is part of its name: `… (skipped: …)`. */
interface Skipped {
  readonly test: string;
  readonly reason: string | undefined;
}

/** What came of a suite in a guest. */
interface Result {
  readonly suite: string;
  readonly passed: number;
  readonly failed: string[];
  readonly skipped: Skipped[];
  readonly seconds: number | undefined;
  /** What it printed. */
  readonly log: string;
}

/** A kernel with or without udev, and what came of it. */
interface Guest {
  readonly name: string;
  readonly series: string;
  readonly udev: boolean;
  kernel: string;
  results: Result[];
}

/** What is running: it is stopped when this program is. */
const running = new Set<Deno.ChildProcess>();

/** Boots a guest and runs everything in it. */
async function run(
  guest: Guest,
  suites: string[],
  script: string,
  program: string,
  limit: number,
  all: boolean,
): Promise<void> {
  const started = performance.now();
  console.error(`${guest.name}: started`);
  const child = new Deno.Command(GUEST, {
    args: [
      ...["-C", PROJECT, "-t", `${limit}`],
      ...(guest.udev ? ["-u"] : []),
      ...[guest.series, "bash", script],
    ],
    env: {
      LOOPDEV_TEST_FEWER: `${FEWER}`,
      LOOPDEV_TEST_CLI: program,
      LOOPDEV_TEST_UDEV: guest.udev ? "yes" : "no",
      ...(all && { LOOPDEV_TEST_ALL: "yes" }),
      DENO_NO_UPDATE_CHECK: "1",
      NO_COLOR: "1",
    },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
  const process = child.spawn();
  running.add(process);
  const [{ code }, stdout, stderr] = await Promise.all([
    process.status,
    readReports(guest, process.stdout),
    new Response(process.stderr).text(),
  ]);
  running.delete(process);
  readResults(guest, suites, code, stdout, stderr);
  const seconds = Math.round((performance.now() - started) / 1000);
  console.error(`${guest.name}: ended after ${seconds} s`);
}

/** Reads what the guest reports to its end, and says how far it is. */
async function readReports(
  { name }: Guest,
  stream: ReadableStream<Uint8Array>,
): Promise<string> {
  let text = "";
  for await (const line of lines(stream)) {
    text += `${line}\n`;
    if (!line.startsWith(MARK)) continue;
    const [suite, , seconds] = line.slice(MARK.length).split(" ");
    console.error(`${name}: ${suite} took ${seconds} s`);
  }
  return text;
}

function readResults(
  guest: Guest,
  suites: string[],
  code: number,
  stdout: string,
  stderr: string,
): void {
  const [head, ...reports] = stdout.split(MARK);
  guest.kernel = head!.trim() || guest.series;
  const [boot, ...logs] = stderr.split(MARK);
  for (const suite of suites) {
    const log = logs.find((log) => log.startsWith(`${suite}\n`)) ?? boot!;
    const report = reports.find((report) => report.startsWith(`${suite} `));
    if (report !== undefined) {
      guest.results.push(readReport(suite, report, log));
      continue;
    }
    // The guest ended before the suite did, or never began it.
    const isFirst = guest.results.every(({ seconds }) => seconds !== undefined);
    const why = code === 124 ? "the time was up" : "the guest ended";
    guest.results.push({
      suite,
      passed: 0,
      failed: [`${why} ${isFirst ? "during" : "before"} this suite`],
      skipped: [],
      seconds: undefined,
      log: isFirst ? log : "",
    });
  }
}

/** `SUITE STATUS SECONDS`, and results as JUnit has them. */
function readReport(suite: string, report: string, log: string): Result {
  const [, status, seconds] = report.split("\n", 1)[0]!.split(" ").map(Number);
  const tests = readTests(report);
  const failed = tests.filter(({ outcome }) => outcome === "failure");
  const skipped = tests.filter(({ outcome }) => outcome === "skipped");
  const passed = tests.length - failed.length - skipped.length;
  const failures = failed.map(({ name }) => name);
  if (status !== 0 && failures.length === 0) {
    failures.push(`exit status ${status}`);
  }
  return {
    suite,
    passed: tests.length === 0 && status === 0 ? 1 : passed,
    failed: failures,
    skipped: skipped.map(({ name }) => {
      const [, test, reason] = /^(.*) \(skipped: (.*)\)$/.exec(name) ?? [];
      return { test: test ?? name, reason };
    }),
    seconds: seconds!,
    log,
  };
}

/** The test cases of a JUnit report that are no groups of others. */
function readTests(xml: string): { name: string; outcome: string }[] {
  const cases = [
    ...xml.matchAll(
      /<testcase name="([^"]*)"[^>]*>\s*(?:<(failure|skipped))?/g,
    ),
  ].map(([, name, outcome]) => ({
    name: unescape(name!),
    outcome: outcome ?? "passed",
  }));
  return cases.filter(({ name, outcome }) =>
    !cases.some((other) => other.name.startsWith(`${name} > `)) ||
    // A group that failed though nothing in it did.
    (outcome === "failure" &&
      !cases.some((other) =>
        other.name.startsWith(`${name} > `) && other.outcome === "failure"
      ))
  );
}

function unescape(text: string): string {
  const entities: Record<string, string> = {
    lt: "<",
    gt: ">",
    quot: '"',
    apos: "'",
    amp: "&",
  };
  return text.replace(/&(\w+);/g, (all, name) => entities[name] ?? all);
}

/** Installs the Debian packages whose commands are missing. */
function installPackages(): void {
  const packages = Object.entries({
    "qemu-system-x86_64": "qemu-system-x86",
    busybox: "busybox-static",
    "mkfs.ext4": "e2fsprogs",
    xz: "xz-utils",
    strace: "strace",
  }).filter(([command]) =>
    runCommand("sh", "-c", `PATH=$PATH:/usr/sbin:/sbin; command -v ${command}`)
      .code !== 0
  ).map(([, name]) => name);
  const install = (...args: string[]) =>
    runCommand("apt-get", "install", "-qq", "-y", ...args);
  if (packages.length > 0) {
    console.error(`installing ${packages.join(" ")}`);
    if (install(...packages).code !== 0) {
      runCommand("apt-get", "update", "-qq");
      const { code, stderr } = install(...packages);
      if (code !== 0) throw new Error(`Cannot install packages: ${stderr}`);
    }
  }
  // The kernels themselves: guest gets them from apt.
  if (runCommand("apt-cache", "pkgnames", "linux-image-6.").stdout === "") {
    runCommand("apt-get", "update", "-qq");
  }
}

/** Translates the sources once, here, where it is fast. */
function warmUp(): void {
  const files = runCommand(
    "find",
    ...[`${PROJECT}tests`, `${PROJECT}examples`, "-name", "*.ts"],
  ).stdout.trim().split("\n");
  const { code, stderr } = runCommand(
    Deno.execPath(),
    ...["cache", "--no-check", "--quiet", `${PROJECT}mod.ts`],
    ...[`${PROJECT}cli.ts`, ...files],
  );
  if (code !== 0) throw new Error(`Cannot cache the sources: ${stderr}`);
}

/** The command line in one file, which starts twice as fast there. */
function bundle(): string {
  const path = `${Deno.makeTempDirSync()}/loopdev.js`;
  const { code, stderr } = runCommand(
    Deno.execPath(),
    ...["bundle", "--quiet", `--output=${path}`, `${PROJECT}cli.ts`],
  );
  if (code !== 0) throw new Error(`Cannot bundle the program: ${stderr}`);
  return path;
}

/** How many guests, of 2 GiB each, there is room for. */
function roomFor(): number {
  const { available } = Deno.systemMemoryInfo();
  return Math.max(1, Math.min(2, Math.floor(available / 2.5e9)));
}

function printTable(guests: Guest[]): void {
  const rows = [
    ["kernel", "udev", "suite", "passed", "failed", "skipped", "seconds"],
  ];
  for (const { kernel, udev, results } of guests) {
    for (const { suite, passed, failed, skipped, seconds } of results) {
      rows.push(
        [kernel, udev ? "yes" : "no", suite].concat(
          [passed, failed.length, skipped.length, seconds ?? "-"].map(String),
        ),
      );
    }
  }
  const widths = rows[0]!.map((_, column) =>
    Math.max(...rows.map((row) => row[column]!.length))
  );
  for (const row of rows) {
    const cells = row.map((cell, column) =>
      column < 3 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)
    );
    console.log(cells.join("  "));
  }
}

/** What was skipped, once for all guests in which it was. */
function printSkipped(guests: Guest[]): void {
  const where = new Map<string, string[]>();
  for (const { name, results } of guests) {
    for (const { test, reason } of results.flatMap(({ skipped }) => skipped)) {
      const line = `${test}: ${reason ?? "NO REASON GIVEN"}`;
      where.set(line, [...where.get(line) ?? [], name]);
    }
  }
  if (where.size > 0) console.log("\nSkipped:");
  for (const [line, names] of where) {
    console.log(`  ${line} (${names.join(", ")})`);
  }
}

function printFailed(guests: Guest[]): void {
  for (const { name, results } of guests) {
    for (const { suite, failed, log } of results) {
      if (failed.length === 0) continue;
      console.log(`\n--- ${name}, ${suite}: the log`);
      console.log(log.trim());
      for (const test of failed) {
        console.log(`FAILED ${name}, ${suite}: ${test}`);
      }
    }
  }
}

async function main(): Promise<void> {
  const { _: names, limit, suites: chosen, all } = parseArgs(Deno.args, {
    string: ["_", "limit", "suites"],
    default: { limit: "450", suites: DEFAULT_SUITES },
    boolean: ["all"],
  });
  const suites = String(chosen).split(",");
  for (const suite of suites) {
    if (!Object.hasOwn(SUITES, suite)) throw new Error(`No suite "${suite}"`);
  }
  const guests = (names.length === 0 ? GUESTS : names.map(String)).map(
    (name): Guest => {
      const [series, ...more] = name.split("+");
      const udev = more[0] === "udev";
      return { name, series: series!, udev, kernel: series!, results: [] };
    },
  );
  installPackages();
  warmUp();
  const program = bundle();
  const script = Deno.makeTempFileSync();
  Deno.writeTextFileSync(script, makeScript(suites));
  const waiting = [...guests];
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => {
      waiting.length = 0;
      for (const process of running) process.kill("SIGTERM");
    });
  }
  const work = async () => {
    for (let next; (next = waiting.shift());) {
      await run(next, suites, script, program, Number(limit), all === true);
    }
  };
  await Promise.all(Array.from({ length: roomFor() }, work));
  Deno.removeSync(script);
  Deno.removeSync(program);
  Deno.removeSync(new URL(".", `file://${program}`));

  printFailed(guests);
  console.log();
  printTable(guests);
  printSkipped(guests);
  const isGood = guests.every(({ results }) =>
    results.length > 0 &&
    results.every(({ failed, skipped }) =>
      failed.length === 0 && skipped.every(({ reason }) => reason !== undefined)
    )
  );
  Deno.exitCode = isGood ? 0 : 1;
}

await main();
