/**
 * Mounts an image, and writes files into it: `mounter.ts IMAGE COUNT`. Prints the number of
 * each file after it is written back (`fsync`).
 */
import { mount } from "@loopdev/loopdev";

/** The content of a file. */
export function contentOf(number: number): Uint8Array {
  return new Uint8Array(4096 + 512 * number).fill(number + 1);
}

if (import.meta.main) {
  const [image, count] = Deno.args;
  await using disk = await mount(image!);
  for (let number = 0; number < Number(count); number++) {
    using file = Deno.createSync(`${disk.path}/${number}`);
    const content = contentOf(number);
    for (let done = 0; done < content.length;) {
      done += file.writeSync(content.subarray(done));
    }
    file.syncSync();
    console.log(number);
  }
}
