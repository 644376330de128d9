/** Counts the system calls that a measured program makes in a cycle, with strace. */

/**
 * System calls to count; the others are for Deno's memory and threads. Older versions
 * of strace do not know cachestat.
 */
const CALLS =
  "openat,close,ioctl,statx,fcntl,pread64,getdents64,readlinkat,sync_file_range,?cachestat";

/** Counts the calls of one cycle. */
export function callsOfCycle(command: string[]): number {
  const [few, many] = [count(command, 10), count(command, 110)];
  return Math.round((many - few) / 100);
}

function count(command: string[], cycles: number): number {
  const log = Deno.makeTempFileSync();
  try {
    // The measured program reads the number of cycles from its standard input.
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
    return Deno.readTextFileSync(log).split("\n")
      .map((line) => /^(\w+) +(\d+)$/.exec(line.trim()))
      .filter((match) => match !== null && match[1] !== "total")
      .reduce((sum, match) => sum + Number(match![2]), 0);
  } finally {
    Deno.removeSync(log);
  }
}
