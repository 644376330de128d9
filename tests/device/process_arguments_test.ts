import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { onDevices, run } from "./support.ts";

const LIB = new URL("../../lib/sys/process_arguments.ts", import.meta.url).href;

/** Returns the lengths of the arguments of a program as it reads them. */
function lengthsOf(...args: string[]): string {
  const program = `const { rawArguments } = await import("${LIB}");
    console.log(rawArguments().map(({ length }) => length).join(" "));`;
  // Limits the memory, in KiB, which an endless loop would exhaust.
  const { code, stdout, stderr } = run(
    "bash",
    "-c",
    'ulimit -d 2000000; exec timeout 60 "$@"',
    "bash",
    Deno.execPath(),
    "eval",
    "--quiet",
    program,
    ...args,
  );
  assertEquals(code, 0, stderr);
  return stdout.trim();
}

describe("rawArguments()", onDevices, () => {
  it("returns the arguments of this program", () => {
    assertEquals(lengthsOf("a", "", "bc\n"), "1 0 3");
  });

  it("returns none of a command line that is cut off", () => {
    assertEquals(lengthsOf("x".repeat(70_000)), "");
    assertEquals(lengthsOf("\n".repeat(70_000)), "");
  });
});
