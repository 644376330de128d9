/** Mounting: an attached ext4 beside mount(8), and `run --mount` beside the shell script that it replaces. */
import type { Attachment } from "@loopdev/loopdev";
import { buildC } from "./build.ts";
import { alternate, type Contender } from "./measure.ts";
import { denoArguments, Program } from "./program.ts";
import type { Findings } from "./result.ts";
import { output, type World } from "./world.ts";

const NANOSECONDS = 1e6;

/** Mounts and unmounts, in this process and by programs of util-linux. */
export async function mountCase(world: World): Promise<Findings> {
  const run = buildC("run");
  const image = world.image(world.memory, 64 << 20);
  output("mkfs.ext4", "-q", "-F", image);
  const target = `${world.memory.path}/mnt`;
  Deno.mkdirSync(target);
  await using programs = new AsyncDisposableStack();
  const shell = (script: string): Contender =>
    programs.use(new Program(run, "sh", "-e", "-c", script)).as("losetup", 2);
  const script =
    `d=$(losetup -f --show ${image}); mount $d ${target}; true; umount ${target}; losetup -d $d`;
  const command = ["run", "--mount", target, image, "--", "true"];
  const ours = programs.use(
    new Program(
      run,
      Deno.execPath(),
      ...denoArguments("../cli.ts").toSpliced(-1, 0, "--allow-run"),
      ...command,
    ),
  ).as("loopdev", 2, 3);
  const commands = await alternate([ours, shell(script)], world.times(40, 3));
  await using device = await world.attach(image);
  const mounts = await alternate([
    mounting(device, {}, "loopdev, private"),
    mounting(device, { target }, "loopdev"),
    shell(`mount ${device.path} ${target}; umount ${target}`),
  ], world.times(40, 3));
  const row = (id: string, title: string, samples: typeof mounts) =>
    ({ id, title, unit: "µs", samples }) as const;
  return {
    rows: [
      row("mount", "mount and unmount an attached ext4", mounts),
      row("run --mount", "attach, mount, run `true`, undo it", commands),
    ],
  };
}

function mounting(
  device: Attachment,
  options: { target?: string },
  name: string,
): Contender {
  return {
    name,
    cycles: 10,
    warmUp: 100,
    async run(cycles): Promise<number[]> {
      const times: number[] = [];
      for (let cycle = 0; cycle < cycles; cycle++) {
        const start = performance.now();
        await (await device.mount(options)).unmount();
        times.push((performance.now() - start) * NANOSECONDS);
      }
      return times;
    },
  };
}
