/**
 * Builds many images at once. Each build gets its own device, even if other processes
 * ask for one at the same time, and a failed build leaves nothing attached:
 *
 *     deno run --allow-ffi --allow-read --allow-write --allow-run=mkfs.ext4 \
 *       examples/parallel_builds.ts [BUILDS]
 */
import { attach } from "@loopdev/loopdev";

const directory = await Deno.makeTempDir();

async function build(name: string): Promise<string> {
  const image = `${directory}/${name}.img`;
  await Deno.writeFile(image, new Uint8Array());
  await Deno.truncate(image, 16 << 20);
  await using device = await attach(image);
  if (name === "build-3") throw new Error("this one is meant to fail");
  const { success } = await new Deno.Command("mkfs.ext4", {
    args: ["-q", device.path],
  }).spawn().status;
  if (!success) throw new Error(`Cannot make a file system on ${device.path}`);
  return device.path;
}

const names = Array.from(
  { length: Number(Deno.args[0] ?? 8) },
  (_, index) => `build-${index + 1}`,
);
const results = await Promise.allSettled(names.map(build));
results.forEach((result, index) => {
  console.log(
    names[index],
    result.status === "fulfilled"
      ? `was on ${result.value}`
      : result.reason.message,
  );
});
await Deno.remove(directory, { recursive: true });
