/**
 * Runs the tests on other kernels, in QEMU, and prints a table of what came of it:
 *
 *     deno task test:kernels [--all] [--limit=SECONDS] [--suites=NAME,...] [--all-guests] [GUEST...]
 *
 * A GUEST is a series of Debian's kernels (`5.10`, `6.12`) or `newest`, on x86_64; with
 * `-arm64` behind it on aarch64, with `-arm64-16k` on one with pages of 16 KiB; and with
 * `+udev` beside udev. Without arguments those run that differ most, in less than 20
 * minutes on an idle machine of two processors; with `--all-guests` all of them.
 *
 * With `--all` also the device tests that come to the same on any kernel; `stress` is a
 * suite that runs when it is asked for. A guest that is not done in time is stopped
 * (`--limit`, 1500 seconds). The exit status is 0 when every test of every guest passed,
 * and each one that was skipped says why.
 *
 * `guest` (beside this file) boots a kernel; its packages are kept outside of the
 * repository. Two guests run at once where there is room for them.
 */
import { parseArgs } from "@std/cli/parse-args";
import { lines, run as runCommand } from "../device/support.ts";

const PROJECT = new URL("../..", import.meta.url).pathname;
const GUEST = new URL("guest", import.meta.url).pathname;
const GUESTS = [
  ...["5.10", "6.1", "6.12", "newest"],
  ...["6.12-arm64", "6.12-arm64-16k", "newest-arm64", "newest-arm64-16k"],
].flatMap((kernel) => [kernel, `${kernel}+udev`]);
/** Those that run when no other is asked for. */
const DEFAULT_GUESTS = ["newest-arm64-16k", "5.10", "6.1+udev", "newest+udev"];

/** How many times fewer the tests repeat what they repeat (see `tests/device/support.ts`): a guest is that much slower. */
const FEWER = 20;
/** The same for the faults: each run of a program under strace takes seconds there. */
const FEWER_FAULTS = 40;

const DENO = "deno test --allow-all --no-check --cached-only --quiet";
/** On one processor, where that is what matters: QEMU has less to do then, and two guests run at once. */
const ONE = "taskset 1";

/** What runs in each guest. A test command is told where to leave its results. */
const SUITES: Record<string, string> = {
  unit: `${DENO} tests/unit`,
  udev: `${DENO} tests/kernels`,
  demo: `${ONE} deno run --allow-all --no-check --cached-only examples/demo.ts`,
  device: `${ONE} ${DENO} tests/device`,
  faults: `env LOOPDEV_TEST_FEWER=${FEWER_FAULTS} ${ONE} ${DENO} tests/faults`,
  stress: `${DENO} --v8-flags=--expose-gc tests/stress`,
};

/** Without what only takes longer: stress. */
const DEFAULT_SUITES = "unit,udev,demo,device,faults";

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
  /** Its name without `+udev`. */
  readonly wanted: string;
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
  { script, program, directory }: Prepared,
  limit: number,
  all: boolean,
): Promise<void> {
  const started = performance.now();
  console.error(`${guest.name}: started`);
  const child = new Deno.Command(GUEST, {
    args: [
      ...["-C", PROJECT, "-s", directory, "-t", `${limit}`],
      ...(guest.udev ? ["-u"] : []),
      ...[guest.wanted, "bash", script],
    ],
    env: {
      LOOPDEV_TEST_FEWER: `${FEWER}`,
      LOOPDEV_TEST_CLI: program,
      LOOPDEV_TEST_UDEV: guest.udev ? "yes" : "no",
      ...(all && { LOOPDEV_TEST_ALL: "yes" }),
      DENO_DIR: denoDirectory(),
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
  const failed = guest.results.flatMap(({ failed }) => failed);
  console.error(
    `${guest.name}: ended after ${seconds} s, ${failed.length} failed`,
  );
  for (const test of failed) console.error(`${guest.name}: FAILED ${test}`);
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
  guest.kernel = head!.trim() || guest.wanted;
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

/** Installs the Debian packages whose commands are missing here. */
function installPackages(guests: Guest[]): void {
  const isArm = ({ wanted }: Guest) => wanted.includes("-arm64");
  const packages = Object.entries({
    ...(!guests.every(isArm) && { "qemu-system-x86_64": "qemu-system-x86" }),
    ...(guests.some(isArm) && { "qemu-system-aarch64": "qemu-system-arm" }),
    busybox: "busybox-static",
    "mkfs.ext4": "e2fsprogs",
    xz: "xz-utils",
    strace: "strace",
  }).filter(([command]) =>
    runCommand("sh", "-c", `PATH=$PATH:/usr/sbin:/sbin; command -v ${command}`)
      .code !== 0
  ).map(([, name]) => name);
  if (packages.length === 0) return;
  console.error(`installing ${packages.join(" ")}`);
  const install = () =>
    runCommand(
      "apt-get",
      ...["install", "-qq", "-y", "--no-install-recommends", ...packages],
    );
  if (install().code === 0) return;
  runCommand("apt-get", "update", "-qq");
  const { code, stderr } = install();
  if (code !== 0) throw new Error(`Cannot install packages: ${stderr}`);
}

/** Where Deno keeps what it has translated. */
function denoDirectory(): string {
  const { stdout } = runCommand(Deno.execPath(), "info", "--json");
  return JSON.parse(stdout).denoDir;
}

/** What the guests need from here. */
interface Prepared {
  /** All the rest is in it. */
  readonly directory: string;
  /** What a guest runs. */
  readonly script: string;
  /** The command line in one file, which starts twice as fast there. */
  readonly program: string;
}

function prepare(suites: string[]): Prepared {
  const directory = Deno.makeTempDirSync();
  const script = `${directory}/script`;
  const program = `${directory}/loopdev.js`;
  Deno.writeTextFileSync(script, makeScript(suites));
  // Translated once, here, where it is fast.
  const files = runCommand(
    "find",
    ...[`${PROJECT}tests`, `${PROJECT}examples`, "-name", "*.ts"],
  ).stdout.trim().split("\n");
  runDeno(
    ...["cache", "--no-check", "--quiet", `${PROJECT}mod.ts`],
    ...[`${PROJECT}cli.ts`, ...files],
  );
  runDeno("bundle", "--quiet", `--output=${program}`, `${PROJECT}cli.ts`);
  return { directory, script, program };
}

function runDeno(...args: string[]): void {
  const { code, stderr } = runCommand(Deno.execPath(), ...args);
  if (code !== 0) throw new Error(`Cannot prepare the guests: ${stderr}`);
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

function parseGuest(name: string): Guest {
  const [wanted, ...more] = name.split("+");
  const udev = more[0] === "udev";
  return { name, wanted: wanted!, udev, kernel: wanted!, results: [] };
}

async function main(): Promise<void> {
  const { _: names, limit, suites: chosen, ...flags } = parseArgs(Deno.args, {
    string: ["_", "limit", "suites"],
    default: { limit: "1500", suites: DEFAULT_SUITES },
    boolean: ["all", "all-guests"],
  });
  const suites = String(chosen).split(",");
  for (const suite of suites) {
    if (!Object.hasOwn(SUITES, suite)) throw new Error(`No suite "${suite}"`);
  }
  const unnamed = flags["all-guests"] ? GUESTS : DEFAULT_GUESTS;
  const guests = (names.length === 0 ? unnamed : names.map(String))
    .map(parseGuest);
  installPackages(guests);
  const prepared = prepare(suites);
  const waiting = [...guests];
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => {
      waiting.length = 0;
      for (const process of running) process.kill("SIGTERM");
    });
  }
  const work = async () => {
    for (let next; (next = waiting.shift());) {
      await run(next, suites, prepared, Number(limit), flags.all === true);
    }
  };
  await Promise.all(Array.from({ length: roomFor() }, work));
  Deno.removeSync(prepared.directory, { recursive: true });

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
