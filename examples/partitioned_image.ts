/**
 * Builds a partitioned image from scratch: a table, and two file systems that are filled
 * at the same time. Then verifies that the image contains all of it:
 *
 *     deno run --allow-all examples/partitioned_image.ts disk.img
 *
 * It runs sfdisk, mkfs.ext4 and fsck.ext4, and mounts by itself.
 */
import { attach, type Attachment, mount } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";

const image = Deno.args[0] ?? await Deno.makeTempFile({ suffix: ".img" });
const TABLE = "label: gpt\nsize=16M, name=boot\nname=data\n";
const FILES = { boot: "kernel\n", data: "written to the second partition\n" };

/** Runs a command, and throws if it fails. */
async function run(command: string, args: string[], input = ""): Promise<void> {
  const child = new Deno.Command(command, { args, stdin: "piped" }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { success } = await child.status;
  if (!success) throw new Error(`Cannot ${command} ${args.join(" ")}`);
}

/** Creates a file system on each partition. */
async function makeFileSystems(device: Attachment): Promise<void> {
  for (const { path, name, size, start } of await device.partitions()) {
    console.log(`${path} (${name}): ${size} bytes from ${start} on`);
    await run("mkfs.ext4", ["-q", path]);
  }
}

/** Fills them. They are unmounted, and then the device is detached, whatever fails. */
async function fill(device: Attachment): Promise<void> {
  await using boot = await device.mount({ partition: "boot" });
  await using data = await device.mount({ partition: "data" });
  await Deno.writeTextFile(`${boot.path}/file`, FILES.boot);
  await Deno.writeTextFile(`${data.path}/file`, FILES.data);
}

await Deno.writeFile(image, new Uint8Array(), {
  createNew: Deno.args[0] !== undefined, // never overwrites an existing image
});
await Deno.truncate(image, 64 * 1024 * 1024);
await run("sfdisk", ["--quiet", image], TABLE);
{
  await using device = await attach(image);
  await makeFileSystems(device);
  await fill(device);
  for (const { path } of await device.partitions()) {
    await run("fsck.ext4", ["-n", "-f", path]);
  }
}
for (const [partition, content] of Object.entries(FILES)) {
  await using disk = await mount(image, { partition, readOnly: true });
  assertEquals(await Deno.readTextFile(`${disk.path}/file`), content);
}
console.log(`${image} contains everything`);
if (Deno.args[0] === undefined) await Deno.remove(image);
