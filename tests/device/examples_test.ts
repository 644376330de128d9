/** Runs the examples with exactly the permissions that they name. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { CLI, onAnyKernel, onDevices, run, withScratch } from "./support.ts";

const DIRECTORY = new URL("../../examples/", import.meta.url).pathname;

/** Returns the permissions in the header of an example. */
function flagsOf(name: string): string[] {
  const text = Deno.readTextFileSync(`${DIRECTORY}${name}.ts`);
  const command = /deno run [^]*? examples\//.exec(text)?.[0] ?? "";
  return command.match(/--allow-[a-z]+(=[\w.,]+)?/g) ?? [];
}

function hasProgram(name: string): boolean {
  return run("sh", "-c", `command -v ${name}`).code === 0;
}

/** Returns the programs that an example may run. */
function programsOf(flags: string[]): string[] {
  return flags.flatMap((flag) =>
    /^--allow-run=(.*)$/.exec(flag)?.[1]?.split(",") ?? []
  );
}

/** Runs an example and returns its output. */
function example(name: string, flags: string[], ...args: string[]): string {
  const { code, stdout, stderr } = run(
    Deno.execPath(),
    ..."run --quiet --no-prompt --no-check".split(" "),
    ...flags,
    `${DIRECTORY}${name}.ts`,
    ...args,
  );
  assertEquals(code, 0, stderr);
  return stdout;
}

describe("examples", onDevices, () => {
  const names = [
    "attach",
    "hot_swap",
    "kernel_layer",
    "leaks",
    "memory_disk",
    "parallel_builds",
    "partitioned_image",
    "recover",
  ];
  for (const name of names) {
    const flags = flagsOf(name);
    const ignore = !programsOf(flags).every(hasProgram);
    it(
      ...onAnyKernel(`${name} runs with the flags in its header`, { ignore }),
      () => {
        assert(
          flags.some((flag) => ["--allow-ffi", "--allow-all"].includes(flag)),
        );
        example(name, flags);
      },
    );
  }

  it(
    ...onAnyKernel("edit_image writes a file into an image", {
      ignore: !hasProgram("mkfs.ext4"),
    }),
    withScratch((scratch) => {
      const image = scratch.image(8 << 20);
      assertEquals(run("mkfs.ext4", "-q", image).code, 0);
      example("edit_image", flagsOf("edit_image"), image, "motd", "hello");
      assertEquals(run("debugfs", "-R", "cat motd", image).stdout, "hello\n");
    }),
  );

  it(
    ...onAnyKernel("install.sh copies files into an image", {
      ignore: !hasProgram("mkfs.ext4"),
    }),
    withScratch((scratch) => {
      const image = scratch.image(8 << 20);
      assertEquals(run("mkfs.ext4", "-q", image).code, 0);
      // The command line, installed.
      const program = `${scratch.path}/loopdev`;
      Deno.writeTextFileSync(
        program,
        `#!/bin/sh\nexec '${Deno.execPath()}' run -q --no-check --allow-ffi --allow-run '${CLI}' "$@"\n`,
        { mode: 0o755 },
      );
      const { code, stderr } = run(
        "env",
        `PATH=${scratch.path}:${Deno.env.get("PATH")}`,
        ...[`${DIRECTORY}install.sh`, image, `${DIRECTORY}attach.ts`],
      );
      assertEquals([code, stderr], [0, ""]);
      assertEquals(
        run("debugfs", "-R", "cat attach.ts", image).stdout,
        Deno.readTextFileSync(`${DIRECTORY}attach.ts`),
      );
    }),
  );

  it(
    ...onAnyKernel("leaks detaches only devices of its directory"),
    withScratch((scratch) => {
      const image = scratch.image();
      const other = scratch.image(1 << 20, "other.img");
      const directory = `${scratch.path}/build`;
      Deno.mkdirSync(directory);
      Deno.renameSync(image, `${directory}/disk.img`);
      const attach = (path: string) => {
        const { code, stdout } = run("losetup", "-f", "--show", path);
        assertEquals(code, 0);
        return stdout.trim();
      };
      const forgotten = attach(`${directory}/disk.img`);
      const others = attach(other);
      const printed = example("leaks", flagsOf("leaks"), directory);
      assertMatch(printed, new RegExp(`^${forgotten} of .* detached\n$`));
      assertEquals(scratch.devices(), [others]);
      run("losetup", "-d", others);
    }),
  );
});
