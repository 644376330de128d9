/**
 * Exchanges the file behind a read-only device while others have it open: a new version
 * of an image that is in use.
 *
 *     deno run --allow-ffi --allow-read --allow-write --allow-run=head \
 *       examples/hot_swap.ts
 */
import { attach, openFile } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";

const directory = await Deno.makeTempDir();

/** An image of 1 MiB that begins with a text. */
async function makeImage(name: string, text: string): Promise<string> {
  const path = `${directory}/${name}`;
  await Deno.writeTextFile(path, text);
  await Deno.truncate(path, 1 << 20); // LOOP_CHANGE_FD wants the same size
  return path;
}

const first = await makeImage("version-1.img", "version 1");
const second = await makeImage("version-2.img", "version 2");
{
  await using device = await attach(first, { readOnly: true });
  // Another program looks, which needs no rights of this one.
  const look = async () => {
    const args = ["-c", "9", device.path];
    const { stdout } = await new Deno.Command("head", { args }).output();
    return new TextDecoder().decode(stdout);
  };

  assertEquals(await look(), "version 1");

  using file = openFile(second, { readOnly: true });
  device.loop.changeFd(file.fd);
  assertEquals(await look(), "version 2");
  console.log(`${device.path} shows version 2, and was there all the time`);
}
await Deno.remove(directory, { recursive: true });
