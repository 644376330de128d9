/**
 * Runs the tests on other kernels, in QEMU, and prints a table of results:
 *
 *     deno task test:kernels [--all] [--limit=SECONDS] [--suites=NAME,...] [--all-guests] [GUEST...]
 *
 * A GUEST is a series of Debian's kernels (`5.10`, `6.12`) or `newest`, on x86_64. The
 * suffix `-arm64` selects aarch64, `-arm64-16k` aarch64 with pages of 16 KiB, and `+udev`
 * a guest with udev. By default, the oldest and the newest kernel on x86_64 run (`5.10` and
 * `newest+udev`) without faults, in less than 20 minutes on an idle machine of two
 * processors. `--all-guests` runs all guests with faults, in some four hours.
 *
 * `--all` also runs the device tests that give equal results on every kernel. The suites
 * `kills` and `stress` run only if they are named. A guest that exceeds the time limit is stopped
 * (`--limit`, 3000 seconds). The exit status is 0 if every test of every guest passed,
 * and every skipped test gives its reason.
 *
 * `guest`, in this directory, boots a kernel. Its packages are kept outside the
 * repository. Two guests run at once if there is enough memory.
 */
import { parseArgs } from "@std/cli/parse-args";
import { lines, run as runCommand } from "../device/support.ts";
import {
  type Guest,
  MARK,
  printFailed,
  printSkipped,
  printTable,
  readResults,
} from "./results.ts";

const PROJECT = new URL("../..", import.meta.url).pathname;
const GUEST = new URL("guest", import.meta.url).pathname;
const GUESTS = [
  ...["5.10", "6.1", "6.12", "newest"],
  ...["6.12-arm64", "6.12-arm64-16k", "newest-arm64", "newest-arm64-16k"],
].flatMap((kernel) => [kernel, `${kernel}+udev`]);
/** Guests that run by default. */
const DEFAULT_GUESTS = ["5.10", "newest+udev"];

/** Divisor of repetitions in the tests (see `tests/device/support.ts`), because a guest is that much slower. */
const FEWER = 20;
/** Divisor of repetitions in the fault tests, where each run of a program under strace takes seconds. */
const FEWER_FAULTS = 40;

const DENO = "deno test --allow-all --no-check --cached-only --quiet";
/** Runs a suite on one processor. QEMU then has less to do, and two guests run at once. */
const ONE = "taskset 1";

/** Suites that run in each guest. A test command gets an option for its results. */
const SUITES: Record<string, string> = {
  unit: `${DENO} tests/unit`,
  udev: `${DENO} tests/kernels`,
  demo: `${ONE} deno run --allow-all --no-check --cached-only examples/demo.ts`,
  device: `${ONE} ${DENO} tests/device`,
  faults: `env LOOPDEV_TEST_FEWER=${FEWER_FAULTS} ${ONE} ${DENO} tests/faults`,
  kills: `${DENO} tests/stress/mount_test.ts`,
  stress: `${DENO} --v8-flags=--expose-gc tests/stress`,
};

/** Suites that run on the default guests. */
const DEFAULT_SUITES = "unit,udev,demo,device";
/** Suites that run on guests that were named, and on all guests. */
const MORE_SUITES = `${DEFAULT_SUITES},faults`;

/** Makes the script that runs suites in turn. Their output goes to stderr, their results to stdout. */
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

/** Running guests, which are stopped with this program. */
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

/** Reads the guest's reports to the end, and prints its progress. */
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

/** Installs the Debian packages of missing commands. */
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

/** Returns the directory of Deno's cache. */
function denoDirectory(): string {
  const { stdout } = runCommand(Deno.execPath(), "info", "--json");
  return JSON.parse(stdout).denoDir;
}

/** Files that the guests need. */
interface Prepared {
  /** Directory of the other files. */
  readonly directory: string;
  /** Script that a guest runs. */
  readonly script: string;
  /** Command line in one file, which starts twice as fast in a guest. */
  readonly program: string;
}

function prepare(suites: string[]): Prepared {
  const directory = Deno.makeTempDirSync();
  const script = `${directory}/script`;
  const program = `${directory}/loopdev.js`;
  Deno.writeTextFileSync(script, makeScript(suites));
  // Compiling once on the host is faster than in each guest.
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

/** Returns the number of guests, of 2 GiB each, that fit into memory. */
function roomFor(): number {
  const { available } = Deno.systemMemoryInfo();
  return Math.max(1, Math.min(2, Math.floor(available / 2.5e9)));
}

function parseGuest(name: string): Guest {
  const [wanted, ...more] = name.split("+");
  const udev = more[0] === "udev";
  return { name, wanted: wanted!, udev, kernel: wanted!, results: [] };
}

async function main(): Promise<void> {
  const { _: names, limit, suites: chosen, ...flags } = parseArgs(Deno.args, {
    string: ["_", "limit", "suites"],
    default: { limit: "3000" },
    boolean: ["all", "all-guests"],
  });
  const isDefault = names.length === 0 && !flags["all-guests"];
  const usual = isDefault ? DEFAULT_SUITES : MORE_SUITES;
  const suites = String(chosen ?? usual).split(",");
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
