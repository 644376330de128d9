/** Mounting and unmounting, beside mount(8), and a mount for one command beside five programs. */
import { buildC } from "./build.ts";
import { alternate } from "./measure.ts";
import { loopdev, Program } from "./program.ts";
import type { Findings } from "./result.ts";
import { output, type World } from "./world.ts";

const SIZE = 16 << 20;

/** An ext4 that is attached already; and an image, for one command. */
export async function mountCase(world: World): Promise<Findings> {
  const run = buildC("run");
  const target = `${world.memory.path}/target`;
  Deno.mkdirSync(target);
  const [attached, theirs, image] = [1, 2, 3].map(() => {
    const file = world.image(world.memory, SIZE);
    output("mkfs.ext4", "-q", file);
    return file;
  });
  const device = await world.attach(theirs!);
  await using programs = new AsyncDisposableStack();
  const script = (...commands: string[][]): Program =>
    programs.use(
      new Program(
        run,
        ...commands.flatMap((words) => ["--then", ...words]).slice(1),
      ),
    );
  const bin = world.installed();
  const free = reserve(world);
  const rounds = world.times(40, 4);
  return {
    rows: [{
      id: "mount",
      title: "mount an attached ext4, and unmount it",
      unit: "µs",
      samples: await alternate([
        programs.use(loopdev("mount", attached!)).as("loopdev", 5, 100),
        script(["mount", device.path, target], ["umount", target])
          .as("losetup", 5),
      ], rounds),
    }, {
      id: "run --mount",
      title: "`run --mount` of `true`; five programs",
      unit: "µs",
      samples: await alternate([
        script([
          ...[`${bin}/loopdev`, "run", "--mount", target, image!, "--", "true"],
        ]).as("loopdev", 2, 3),
        script(
          ["losetup", free, image!],
          ["mount", free, target],
          ["true"],
          ["umount", target],
          ["losetup", "--detach", free],
        ).as("losetup", 2),
      ], rounds),
    }],
  };
}

/** The path of a device that nobody else binds meanwhile. */
function reserve(world: World): string {
  const own = world.ownDevices();
  own.add(1);
  return `/dev/loop${own.minors[0]}`;
}
