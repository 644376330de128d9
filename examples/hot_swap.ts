/**
 * Exchanges the file of a read-only device while other programs have it open, for a new
 * version of an image in use:
 *
 *     deno run --allow-ffi --allow-read --allow-write --allow-run=head \
 *       examples/hot_swap.ts
 */
import { attach, openFile } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";

const directory = await Deno.makeTempDir();

/** Creates an image of 1 MiB that starts with a text. */
async function makeImage(name: string, text: string): Promise<string> {
  const path = `${directory}/${name}`;
  await Deno.writeTextFile(path, text);
  await Deno.truncate(path, 1 << 20); // LOOP_CHANGE_FD requires the same size
  return path;
}

const first = await makeImage("version-1.img", "version 1");
const second = await makeImage("version-2.img", "version 2");
{
  await using device = await attach(first, { readOnly: true });
  // Read by another program, because this one has no permission to.
  const look = async () => {
    const args = ["-c", "9", device.path];
    const { stdout } = await new Deno.Command("head", { args }).output();
    return new TextDecoder().decode(stdout);
  };

  assertEquals(await look(), "version 1");

  using file = openFile(second, { readOnly: true });
  device.loop.changeFd(file.fd);
  device.loop.flushBuffers(); // Linux drops what was read by itself from 5.15 on
  assertEquals(await look(), "version 2");
  console.log(`${device.path} shows version 2 and was never detached`);
}
await Deno.remove(directory, { recursive: true });
