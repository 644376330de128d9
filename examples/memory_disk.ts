/**
 * Creates a disk in memory with a file system, which leaves nothing behind:
 *
 *     deno run --allow-ffi --allow-run=mkfs.ext4,mount,umount --allow-read --allow-write \
 *       examples/memory_disk.ts [MEBIBYTES]
 */
import { attach, openMemory } from "@loopdev/loopdev";

/** Runs a command, and throws if it fails. */
async function run(command: string, ...args: string[]): Promise<void> {
  const { success } = await new Deno.Command(command, { args }).spawn().status;
  if (!success) throw new Error(`Cannot ${command} ${args.join(" ")}`);
}

using memory = openMemory(Number(Deno.args[0] ?? 64) << 20);
await using stack = new AsyncDisposableStack();
const device = stack.use(await attach(memory));
await run("mkfs.ext4", "-q", device.path);

const directory = await Deno.makeTempDir();
stack.defer(() => Deno.remove(directory));
await run("mount", device.path, directory);
stack.defer(() => run("umount", directory)); // before the device is detached

await Deno.writeTextFile(`${directory}/scratch.txt`, "nobody else sees this");
console.log(
  `${directory} is on ${device.path}, ${device.size} bytes of memory`,
);
