/**
 * Builds a partitioned image from scratch: a table, a file system on one partition, and
 * a file in it. Then verifies that the image contains all of it:
 *
 *     deno run --allow-ffi --allow-write --allow-read --allow-run=sfdisk,mkfs.ext4,mount,umount,fsck.ext4 \
 *       examples/partitioned_image.ts disk.img
 */
import { attach } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";

const image = Deno.args[0] ?? await Deno.makeTempFile({ suffix: ".img" });
const TABLE = "label: gpt\nsize=16M, type=uefi, name=boot\nname=data\n";
const MESSAGE = "written to the second partition\n";

/** Runs a command, and throws if it fails. */
async function run(command: string, args: string[], input = ""): Promise<void> {
  const child = new Deno.Command(command, { args, stdin: "piped" }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { success } = await child.status;
  if (!success) throw new Error(`Cannot ${command} ${args.join(" ")}`);
}

/** Mounts the partition named data, calls a function, and unmounts it. */
async function withData(
  readOnly: boolean,
  use: (directory: string) => Promise<void>,
): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const device = stack.use(
    await attach(image, { partscan: true, readOnly }),
  );
  const partitions = await device.partitions();
  const data = partitions.find(({ name }) => name === "data")!;
  console.log(`${data.path}: ${data.size} bytes from ${data.start} on`);
  if (!readOnly) await run("mkfs.ext4", ["-q", data.path]);
  else await run("fsck.ext4", ["-n", "-f", data.path]);

  const directory = await Deno.makeTempDir();
  stack.defer(() => Deno.remove(directory));
  await run("mount", ["-o", readOnly ? "ro" : "rw", data.path, directory]);
  stack.defer(() => run("umount", [directory]));
  await use(directory);
}

await Deno.writeFile(image, new Uint8Array(), {
  createNew: Deno.args[0] !== undefined, // never overwrites an existing image
});
await Deno.truncate(image, 64 * 1024 * 1024);
await run("sfdisk", ["--quiet", image], TABLE);
await withData(false, async (directory) => {
  await Deno.writeTextFile(`${directory}/hello.txt`, MESSAGE);
});
await withData(true, async (directory) => {
  assertEquals(await Deno.readTextFile(`${directory}/hello.txt`), MESSAGE);
});
console.log(`${image} contains everything`);
if (Deno.args[0] === undefined) await Deno.remove(image);
