/**
 * Edit a file in an image, without a mount that could stay behind:
 *
 *     deno run --allow-all examples/edit_image.ts disk.img etc/motd "hello"
 *
 * The mount is private: it is gone with this process, however that ends. Deno's own file
 * calls want --allow-all for its path, which is below /proc.
 */
import { mount } from "@loopdev/loopdev";

const [image, file, text] = Deno.args;
if (image === undefined || file === undefined || text === undefined) {
  console.error("usage: edit_image.ts IMAGE FILE TEXT");
  Deno.exit(2);
}

await using disk = await mount(image);
await Deno.writeTextFile(`${disk.path}/${file}`, `${text}\n`);
console.log(`${disk.type} of ${image}: ${file} written`);
