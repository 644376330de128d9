/**
 * Attaches, mounts, unmounts and detaches in the right order, even if something fails:
 *
 *     deno run --allow-ffi --allow-run=mount,umount examples/mount.ts disk.img /mnt COMMAND...
 *
 * Runs COMMAND while the file system of disk.img is mounted on /mnt, so add COMMAND to
 * --allow-run.
 */
import { attach } from "@loopdev/loopdev";

/** Runs a command, and throws if it fails. */
async function run(command: string, ...args: string[]): Promise<void> {
  const { success } = await new Deno.Command(command, { args }).spawn().status;
  if (!success) throw new Error(`Cannot ${command} ${args.join(" ")}`);
}

const [image, directory, command, ...args] = Deno.args;
if (image === undefined || directory === undefined || command === undefined) {
  console.error("usage: mount.ts IMAGE DIRECTORY COMMAND...");
  Deno.exit(2);
}

await using stack = new AsyncDisposableStack();
const device = stack.use(await attach(image));
await run("mount", device.path, directory);
stack.defer(() => run("umount", directory)); // before the device is detached
await run(command, ...args);
