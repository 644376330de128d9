/** Measures reading the status of one device and listing all devices. */
import { buildC } from "./build.ts";
import { allMinors } from "./devices.ts";
import { alternate } from "./measure.ts";
import { loopdev, Program } from "./program.ts";
import type { Findings, Row } from "./result.ts";
import type { World } from "./world.ts";

const HERE = new URL(".", import.meta.url).pathname;
const COUNTS = [8, 64, 256, 512];
/** Number of devices: the kernel creates 8, and all existing ones are examined. */
const MANY = 32;

/**
 * Measures `list()` beside `losetup --list`, and `find()` beside
 * `losetup --associated`.
 */
export async function listCase(world: World): Promise<Findings> {
  const run = buildC("run");
  const rules = buildC("list");
  const rows: Row[] = [];
  await using own = world.ownDevices();
  await using attachments = new AsyncDisposableStack();
  const others = allMinors().length;
  if (others > MANY) {
    world.remarks.push(
      `Beside those that are listed there were ${others} loop devices of others`,
    );
  }
  const file = world.image(world.memory);
  for (const count of world.quick ? COUNTS.slice(0, 2) : COUNTS) {
    // As many unbound devices as attached ones, because those are examined too.
    const before = own.minors.length;
    own.add(count - before);
    for (const [index, minor] of own.minors.slice(before).entries()) {
      const isLast = before + index === count - 1;
      const backing = isLast && count === COUNTS[0]
        ? file
        : world.image(world.memory);
      attachments.use(await world.attach(backing, { minor }));
    }
    const rounds = world.times(20, 3);
    const cycles = Math.max(1, Math.round(world.times(200, 50) / count));
    const measure = async (
      id: string,
      title: string,
      ours: string[],
      losetup: string[],
      c: string[] = [],
    ): Promise<void> => {
      await using programs = new AsyncDisposableStack();
      const contenders = [
        programs.use(loopdev(...ours))
          .as("loopdev", cycles, Math.ceil(2000 / count)),
        ...c.map((name) =>
          programs.use(new Program(name)).as("C", cycles, cycles)
        ),
        programs.use(new Program(run, "losetup", ...losetup))
          .as("losetup", Math.min(10, cycles)),
      ];
      const samples = await alternate(contenders, rounds);
      rows.push({ id: `${id} ${count}`, title, unit: "µs", samples });
    };
    await measure(
      "list",
      `list ${count} devices`,
      ["list"],
      ["--list"],
      [rules],
    );
    await measure(
      "find",
      `find one of ${count} devices`,
      ["find", file],
      ["--associated", file],
    );
  }
  return { rows };
}

/** Measures reading the status of one device. */
export async function statusCase(world: World): Promise<Findings> {
  const run = buildC("run");
  const file = world.image(world.memory);
  await using device = await world.attach(file);
  await using programs = new AsyncDisposableStack();
  const python = [`${HERE}original.py`, world.image(world.memory), "--status"];
  const losetup = programs.use(
    new Program(run, "losetup", "--json", "--list", device.path),
  );
  const original = programs.use(new Program("python3", ...python));
  const rows: Row[] = [];
  for (const what of ["getInfo", "getStatus"]) {
    const ours = programs.use(loopdev(what, world.image(world.memory)));
    rows.push({
      id: what,
      title: `${what}()`,
      unit: "µs",
      samples: await alternate([
        ours.as("loopdev", 10, 200),
        losetup.as("losetup", 10),
        original.as("original", 10),
      ], world.times(20, 3)),
    });
  }
  return { rows };
}
