import { assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { onDevices, type Output, run, withScratch } from "./support.ts";

const MOD = new URL("../../mod.ts", import.meta.url).href;

/** Attaches and detaches in a process with these permissions. */
function attachWith(
  directory: string,
  image: string,
  ...flags: string[]
): Output {
  const script = `
    import { attach, LoopError, openFile } from "${MOD}";
    {
      await using device = await attach("${image}");
      console.log(device.size);
    }
    try {
      openFile("/nowhere");
    } catch (error) {
      console.log(error.code);
    }`;
  Deno.writeTextFileSync(`${directory}/attach.ts`, script);
  return run(
    Deno.execPath(),
    "run",
    "-q",
    "--no-check",
    "--no-prompt",
    ...flags,
    `${directory}/attach.ts`,
  );
}

const LIBC = [
  `/lib/${Deno.build.arch}-linux-gnu/libc.so.6`,
  `/usr/lib/${Deno.build.arch}-linux-gnu/libc.so.6`,
];

describe("permissions", onDevices, () => {
  it(
    "--allow-ffi is enough, even only for libc or its directory",
    withScratch((scratch) => {
      const image = scratch.image(4096);
      const grants = ["--allow-ffi", ...LIBC.map((it) => `--allow-ffi=${it}`)];
      grants.push(`--allow-ffi=/lib/${Deno.build.arch}-linux-gnu`);
      for (const grant of grants) {
        const { code, stdout, stderr } = attachWith(
          scratch.path,
          image,
          grant,
        );
        assertEquals([code, stdout], [0, "4096\nENOENT\n"], stderr);
      }
    }),
  );

  it(
    "without it, Deno's own error is thrown, and importing works",
    withScratch((scratch) => {
      const denied = attachWith(scratch.path, scratch.image());
      assertEquals(denied.code, 1);
      assertMatch(denied.stderr, /NotCapable: Requires ffi access/);
      Deno.writeTextFileSync(`${scratch.path}/import.ts`, `import "${MOD}";`);
      const imported = run(
        Deno.execPath(),
        ..."run -q --no-check --no-prompt".split(" "),
        `${scratch.path}/import.ts`,
      );
      assertEquals(imported, { code: 0, stdout: "", stderr: "" });
    }),
  );
});
