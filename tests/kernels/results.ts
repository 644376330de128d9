/** Reads and prints the results of the suites in the guests. */

/** Mark at the beginning of a guest's report of a suite, in both of its streams. */
export const MARK = "\x01";

/** A test that did not run, with the reason from its name: `… (skipped: …)`. */
export interface Skipped {
  readonly test: string;
  readonly reason: string | undefined;
}

/** Result of a suite in a guest. */
export interface Result {
  readonly suite: string;
  readonly passed: number;
  readonly failed: string[];
  readonly skipped: Skipped[];
  readonly seconds: number | undefined;
  /** Output of the suite. */
  readonly log: string;
}

/** A kernel with or without udev, and its results. */
export interface Guest {
  readonly name: string;
  /** Name of the kernel, without `+udev`. */
  readonly wanted: string;
  readonly udev: boolean;
  kernel: string;
  results: Result[];
}

/** Reads a guest's reports of its suites. */
export function readResults(
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

/** Reads a report: `SUITE STATUS SECONDS`, and results in the format of JUnit. */
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

/** Returns the test cases of a JUnit report that are not groups of others. */
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
    // A group can fail although no test in it failed.
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

/** Prints how many tests of each suite passed. */
export function printTable(guests: Guest[]): void {
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

/** Prints each skipped test once, with the guests that skipped it. */
export function printSkipped(guests: Guest[]): void {
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

/** Prints failed tests, and the logs of their suites. */
export function printFailed(guests: Guest[]): void {
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
