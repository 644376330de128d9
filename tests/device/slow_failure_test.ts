/** Makes system calls take long and fail, with `strace`. */
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  lacking,
  onDevices,
  runOk,
  type Scratch,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;
const MOD = new URL("../../mod.ts", import.meta.url).href;
const noStrace = lacking("strace");

/** Delay of a call in microseconds. */
const DELAY = 1_000_000;
/** Shortest stop of the event loop, in milliseconds, that is due to such a call. */
const STOP = 900;

/** Result of the failing call, and whether it stopped the event loop. */
interface Failure {
  readonly code: string;
  readonly message: string;
  readonly hasStopped: boolean;
}

/**
 * Runs statements in a child process while a system call fails. They set `error` to
 * what was thrown.
 */
function failing(
  call: string,
  injected: string,
  statements: string,
): Failure {
  const program = `
    const { attach, mount } = await import("${MOD}");
    let [last, longest] = [performance.now(), 0];
    const timer = setInterval(() => {
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 1);
    const beat = () => new Promise((resolve) => setTimeout(resolve, 20));
    const watch = async () => {
      await beat();
      [last, longest] = [performance.now(), 0];
    };
    let error;
    ${statements}
    await beat();
    clearInterval(timer);
    console.log(JSON.stringify({
      code: error?.code,
      message: error?.message,
      hasStopped: longest > ${STOP},
    }));`;
  const output = runOk(
    "strace",
    "--follow-forks",
    "--quiet=all",
    "--output=/dev/null",
    `--trace=${call}`,
    `--inject=${call}:${injected}`,
    Deno.execPath(),
    "eval",
    "--quiet",
    program,
  );
  return JSON.parse(output);
}

function ext4(scratch: Scratch): string {
  const image = scratch.image(8 * MiB);
  runOk("mkfs.ext4", "-q", "-F", image);
  return image;
}

describe("a call that takes long to fail", onDevices, () => {
  const unmounting = (image: string) => `
    const disk = await mount("${image}");
    await watch();
    error = await disk.unmount().catch((error) => error);`;

  it(
    ...unless(noStrace, "does not stop the event loop at unmount()"),
    withScratch((scratch) => {
      const failure = failing(
        "syncfs",
        `error=ENOSPC:delay_enter=${DELAY}`,
        unmounting(ext4(scratch)),
      );
      assertEquals([failure.code, failure.hasStopped], ["EIO", false]);
      assert(failure.message.includes("reason is not known"), failure.message);
    }),
  );

  it(
    ...unless(
      noStrace,
      "does not stop the event loop at mount() without a module",
    ),
    withScratch((scratch) => {
      const image = ext4(scratch);
      // The first call loads modules, which takes long on an emulated machine. It
      // fails before fsopen().
      const failure = failing(
        "fsopen",
        `error=ENODEV:delay_enter=${DELAY}`,
        `await mount("${image}", { type: "proc" }).catch(() => {});
         await watch();
         error = await mount("${image}", { type: "none-such" })
           .catch((error) => error);`,
      );
      assertEquals([failure.code, failure.hasStopped], ["ENODEV", false]);
      assert(failure.message.includes("no file system none-such"));
    }),
  );
});
