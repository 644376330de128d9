/**
 * Measures importing the module and starting the command line, beside an empty program.
 */
import { buildC } from "./build.ts";
import { alternate, type Contender } from "./measure.ts";
import { denoArguments, Program } from "./program.ts";
import type { Figure, Findings } from "./result.ts";
import type { World } from "./world.ts";

const DEVICES = 8;

/** Measures programs in TypeScript from start to end. */
export async function startCase(world: World): Promise<Findings> {
  const run = buildC("run");
  await using own = world.ownDevices();
  own.add(DEVICES);
  await using programs = new AsyncDisposableStack();
  for (const minor of own.minors) {
    programs.use(await world.attach(world.image(world.memory), { minor }));
  }
  const deno = (name: string, program: string, ...args: string[]): Contender =>
    programs.use(
      new Program(run, Deno.execPath(), ...denoArguments(program), ...args),
    ).as(name, 2, 3); // the first runs fill Deno's cache
  const bin = world.installed();
  const installed = (
    name: string,
    program: string,
    ...args: string[]
  ): Contender =>
    programs.use(new Program(run, `${bin}/${program}`, ...args))
      .as(name, 2, 3);
  const samples = await alternate([
    deno("empty", "start/empty.ts"),
    deno("import", "start/import.ts"),
    installed("version", "loopdev", "--version"),
    installed("list", "loopdev", "list"),
    installed("losetup -l", "losetup", "-l"),
    programs.use(new Program(run, "losetup", "--version")).as("losetup", 2),
  ], world.times(40, 3));
  return {
    rows: [{
      id: "start",
      title: "programs, from start to end",
      unit: "µs",
      samples,
    }],
    figures: [symbols()],
  };
}

/** Counts the C functions that importing the module looks up. */
function symbols(): Figure {
  const { stdout } = new Deno.Command(Deno.execPath(), {
    args: denoArguments("start/symbols.ts"),
  }).outputSync();
  return { id: "symbols", value: Number(new TextDecoder().decode(stdout)) };
}
