/**
 * Injects faults and signals into `loopdev attach`: the devices that were printed stay
 * attached, and no others.
 */
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CLI,
  isSoon,
  numbersTo,
  onDevices,
  type Output,
  run,
  Scratch,
} from "../device/support.ts";

/** Attaches two files with an injected fault, and detaches the devices that stay. */
function attachTwo(
  scratch: Scratch,
  calls: string,
  injection?: string,
  { options = [], ignores = "" }: { options?: string[]; ignores?: string } = {},
): Output & { trace: string } {
  const log = `${scratch.path}/log`;
  const files = [scratch.image(1 << 20, "a"), scratch.image(1 << 20, "b")];
  const output = run(
    "sh",
    "-c",
    `${ignores && `trap "" ${ignores};`} exec strace "$@"`,
    "sh",
    ..."-f -qq -o".split(" "),
    log,
    "-e",
    `trace=${calls}`,
    ...injection === undefined ? [] : ["-e", `inject=${injection}`],
    Deno.execPath(),
    ..."run -q --no-check --allow-ffi".split(" "),
    CLI,
    "attach",
    ...options,
    ...files,
  );
  const printed = output.stdout.match(/\/dev\/loop\d+(?=["\n])/g) ?? [];
  // A released device may still be open in udev.
  const areThose = () =>
    scratch.devices().toSorted().join() === printed.toSorted().join();
  assert(isSoon(areThose), `${injection}: ${printed}, ${scratch.devices()}`);
  for (const device of printed) run("losetup", "-d", device);
  assert(isSoon(() => scratch.devices().length === 0));
  return { ...output, trace: Deno.readTextFileSync(log) };
}

function countOf(call: string, trace: string): number {
  return trace.match(new RegExp(`\\b${call}\\(`, "g"))?.length ?? 0;
}

const SIGNALS: [signal: string, status: number, ...options: string[]][] = [
  ["INT", 130],
  ["TERM", 143, "--json"],
];

describe("loopdev attach", onDevices, () => {
  it("keeps printed devices if another device cannot be written back", () => {
    using scratch = new Scratch();
    const calls = "sync_file_range,fsync";
    for (const options of [[], ["--json"]]) {
      const whole = attachTwo(scratch, calls, undefined, { options });
      assertEquals(whole.code, 0, whole.stderr);
      let failed = 0;
      for (const call of calls.split(",")) {
        for (let when = 1; when <= countOf(call, whole.trace); when++) {
          const { code, stdout, stderr } = attachTwo(
            scratch,
            calls,
            `${call}:error=EIO:when=${when}`,
            { options },
          );
          if (code === 0) continue;
          failed++;
          assertEquals(code, 1, stderr);
          assertEquals(stdout.match(/\/dev\/loop\d+(?=["\n])/g)?.length, 1);
        }
      }
      assert(failed >= 2, `${failed}`);
    }
    scratch.check();
  });

  it("keeps only printed devices if it is interrupted", () => {
    using scratch = new Scratch();
    const calls = "ioctl,sync_file_range,write";
    const whole = attachTwo(scratch, calls);
    let interrupted = 0;
    for (const call of calls.split(",")) {
      for (const when of numbersTo(Math.min(countOf(call, whole.trace), 60))) {
        for (const [signal, status, ...options] of SIGNALS) {
          const injection = `${call}:signal=${signal}:when=${when}`;
          const { code } = attachTwo(scratch, calls, injection, { options });
          assert([0, status].includes(code), `${injection}: ${code}`);
          if (code !== 0) interrupted++;
        }
      }
    }
    assert(interrupted > 0);
    scratch.check();
  });

  it("continues if the signal was ignored from the start", () => {
    using scratch = new Scratch();
    const calls = "sync_file_range";
    for (const signal of ["INT", "HUP"]) {
      const injection = `${calls}:signal=${signal}`; // at each call
      const { code, stdout } = attachTwo(scratch, calls, injection, {
        ignores: signal,
      });
      assertEquals([code, stdout.trim().split("\n").length], [0, 2]);
    }
    scratch.check();
  });
});
