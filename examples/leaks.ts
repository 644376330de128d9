/**
 * Finds and detaches forgotten devices: those whose files are, or were, in a directory:
 *
 *     deno run --allow-ffi --allow-read --allow-write examples/leaks.ts [DIRECTORY]
 *
 * Without a directory, creates one and leaks two devices first.
 */
import { attach, detach, list } from "@loopdev/loopdev";

/** Leaves two devices attached, one of them with a deleted file. */
async function leak(directory: string): Promise<void> {
  for (const name of ["kept.img", "deleted.img"]) {
    const image = `${directory}/${name}`;
    await Deno.writeFile(image, new Uint8Array(1 << 20));
    const device = await attach(image);
    await device.persist(); // otherwise autoclear would detach it at the end
  }
  await Deno.remove(`${directory}/deleted.img`);
}

const temporary = Deno.args.length === 0 ? await Deno.makeTempDir() : undefined;
// As the kernel reports it: absolute, with symbolic links resolved.
const directory = await Deno.realPath(temporary ?? Deno.args[0]!);
if (temporary !== undefined) await leak(directory);

// list() opens no device, so other processes are not disturbed.
for (const device of list()) {
  if (!device.backingFile.startsWith(`${directory}/`)) continue;
  // Pass the row, not the number, which another process may have reused.
  await detach(device);
  const state = device.deleted ? "deleted " : "";
  console.log(`${device.path} of the ${state}${device.backingFile} detached`);
}

if (temporary !== undefined) await Deno.remove(temporary, { recursive: true });
