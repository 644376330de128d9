/**
 * Finds devices that somebody forgot, and detaches them: those of the files in a
 * directory, also of files that were deleted.
 *
 *     deno run --allow-ffi --allow-read --allow-write examples/leaks.ts [DIRECTORY]
 *
 * Without a directory it makes one, and leaks two devices first.
 */
import { attach, detach, list } from "@loopdev/loopdev";

/** Leaves two devices attached, one of them without a file. */
async function leak(directory: string): Promise<void> {
  for (const name of ["kept.img", "deleted.img"]) {
    const image = `${directory}/${name}`;
    await Deno.writeFile(image, new Uint8Array(1 << 20));
    const device = await attach(image);
    await device.persist(); // or autoclear would detach it at the end
  }
  await Deno.remove(`${directory}/deleted.img`);
}

const temporary = Deno.args.length === 0 ? await Deno.makeTempDir() : undefined;
// As the kernel has it: absolute, without symbolic links.
const directory = await Deno.realPath(temporary ?? Deno.args[0]!);
if (temporary !== undefined) await leak(directory);

// list() opens no device, so that nothing that others do with theirs is disturbed.
for (const device of list()) {
  if (!device.backingFile.startsWith(`${directory}/`)) continue;
  // The device of the list, not of the number: it may be somebody else's by now.
  await detach(device);
  const state = device.deleted ? "deleted " : "";
  console.log(`${device.path} of the ${state}${device.backingFile} detached`);
}

if (temporary !== undefined) await Deno.remove(temporary, { recursive: true });
