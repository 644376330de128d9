/**
 * Recovers what it can from a damaged image, without writing a single byte to it. The
 * device is read-only, the table is read from its backup if necessary, and each
 * partition with an intact file system is copied to a file:
 *
 *     deno run --allow-ffi --allow-read --allow-write --allow-run=sfdisk,mkfs.ext4,fsck.ext4,dd \
 *       examples/recover.ts [IMAGE DIRECTORY]
 *
 * Without arguments, creates a damaged image first.
 */
import { attach } from "@loopdev/loopdev";

async function run(
  command: string,
  args: string[],
  input = "",
): Promise<boolean> {
  const child = new Deno.Command(command, {
    args,
    stdin: "piped",
    stdout: "null",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  return (await child.status).success;
}

/** Creates an image with a file system, and overwrites its GPT header. */
async function makeDamaged(path: string): Promise<void> {
  await Deno.writeFile(path, new Uint8Array());
  await Deno.truncate(path, 64 << 20);
  await run("sfdisk", [path], "label: gpt\nsize=16M, name=data\nname=broken\n");
  {
    await using device = await attach(path, { partscan: true });
    const [data] = await device.partitions();
    await run("mkfs.ext4", ["-q", data!.path]);
  }
  using file = await Deno.open(path, { write: true });
  await file.seek(512, Deno.SeekMode.Start);
  await file.write(new Uint8Array(512).fill(0xff));
}

const temporary = Deno.args.length < 2 ? await Deno.makeTempDir() : undefined;
const image = Deno.args[0] ?? `${temporary}/damaged.img`;
const target = Deno.args[1] ?? `${temporary}`;
if (temporary !== undefined) await makeDamaged(image);

{
  await using device = await attach(image, {
    readOnly: true,
    partscan: true,
    blockSize: "probe",
  });
  for (const { number, name, path } of await device.partitions()) {
    const isSound = await run("fsck.ext4", ["-n", "-f", path]);
    const copy = `${target}/partition-${number}.img`;
    if (isSound) await run("dd", [`if=${path}`, `of=${copy}`, "bs=1M"]);
    console.log(
      number,
      name,
      isSound ? `saved as ${copy}` : "is not an intact ext4",
    );
  }
}
if (temporary !== undefined) await Deno.remove(temporary, { recursive: true });
