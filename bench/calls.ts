/** Whether two programs make the same system calls, by strace. */

/** What is compared; the rest is the memory and the threads of Deno. An older strace does not know cachestat. */
const CALLS =
  "openat,close,ioctl,statx,fcntl,pread64,getdents64,sync_file_range,?cachestat";

/** What differs in the calls that one cycle of each makes; `undefined` when nothing does. */
export function differingCalls(
  first: string[],
  second: string[],
): string | undefined {
  try {
    const [a, b] = [callsOfCycle(first), callsOfCycle(second)];
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    const different = [...names]
      .filter((name) => a[name] !== b[name])
      .map((name) => `${name} ${a[name] ?? 0} and ${b[name] ?? 0} times`);
    if (different.length === 0) return undefined;
    return `attach.c does not make the calls of the library any more: ${
      different.join(", ")
    }`;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return "The system calls were not compared: strace is not installed";
  }
}

/** How often one cycle makes each call. */
export function callsOfCycle(command: string[]): Record<string, number> {
  const few = count(command, 10);
  const many = count(command, 110);
  return Object.fromEntries(
    Object.entries(many)
      .map(([name, calls]) =>
        [name, Math.round((calls - (few[name] ?? 0)) / 100)] as const
      )
      .filter(([, calls]) => calls !== 0),
  );
}

function count(command: string[], cycles: number): Record<string, number> {
  const log = Deno.makeTempFileSync();
  try {
    // The measured program reads from its standard input how many cycles to do.
    const { success, stderr } = new Deno.Command("sh", {
      args: [
        "-c",
        'echo "$1" | { shift; exec "$@"; }',
        "sh",
        String(cycles),
        ...["strace", "--follow-forks", "--summary-only"],
        ...["--summary-columns=name,calls", "-e", `trace=${CALLS}`],
        ...["--output", log, "--", ...command],
      ],
      stdout: "null",
    }).outputSync();
    if (!success) {
      const why = new TextDecoder().decode(stderr);
      if (/strace: (command )?not found/.test(why)) {
        throw new Deno.errors.NotFound("strace");
      }
      throw new Error(`strace: ${why}`);
    }
    return Object.fromEntries(
      Deno.readTextFileSync(log).split("\n")
        .map((line) => /^(\w+) +(\d+)$/.exec(line.trim()))
        .filter((match) => match !== null && match[1] !== "total")
        .map((match) => [match![1]!, Number(match![2])]),
    );
  } finally {
    Deno.removeSync(log);
  }
}
