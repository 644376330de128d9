/**
 * Demonstrates the library on a real image and verifies the result:
 *
 *     deno task demo [IMAGE]
 *
 * Without an image, creates one, attaches it, writes to it, detaches it, and finds the
 * written data in the image. An existing image is attached read-only and shown.
 */
import { attach, list, LoopError } from "@loopdev/loopdev";
import { basename } from "@std/path/posix/basename";

const MiB = 1024 * 1024;
const MESSAGE = "written through a loop device\n";

/** Error that the user can correct, printed on one line without a stack. */
class Problem extends Error {}

function say(step: string): void {
  console.log(`\n# ${step}`);
}

/** Runs a command. Returns `false` if it does not exist. */
async function run(command: string, ...args: string[]): Promise<boolean> {
  console.log(`$ ${command} ${args.join(" ")}`);
  let output;
  try {
    output = await new Deno.Command(command, { args }).output();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
  if (output.success) return true;
  throw new Problem(
    `${command} failed: ${new TextDecoder().decode(output.stderr).trim()}`,
  );
}

/** Attaches the user's image read-only. */
async function show(image: string): Promise<void> {
  say(`Attach ${image} read-only`);
  await using device = await attach(image, { readOnly: true });
  console.table(
    list().filter(({ minor }) => minor === device.minor),
    ["path", "size", "readOnly", "backingFile"],
  );
  say("All about it");
  console.log(list().find(({ minor }) => minor === device.minor));
  console.log(device.loop.getStatus());
  say(`Detach ${device.path}`);
  await device.detach();
  console.log("The device is free.");
}

/** Creates an image, writes to it through a device, and finds the data in the image. */
async function make(directory: string): Promise<void> {
  const image = `${directory}/disk.img`;
  say("Create an image of 64 MiB");
  await Deno.writeFile(image, new Uint8Array());
  await Deno.truncate(image, 64 * MiB);
  const hasFileSystem = await run("mkfs.ext4", "-q", image);
  if (!hasFileSystem) console.log("(mkfs.ext4 is missing: using raw blocks)");

  say("Attach it");
  await using device = await attach(image, { reference: "demo" });
  console.log(`It is attached to ${device.path}.`);

  say("List it");
  console.table(
    list().filter(({ minor }) => minor === device.minor),
    ["path", "size", "readOnly", "backingFile"],
  );

  if (hasFileSystem) await writeFile(device.path, `${directory}/mnt`);
  else await writeBlock(device.path);

  say(`Detach ${device.path}`);
  await device.detach();
  console.log("The device is free, and the data is in the image.");

  say(`Find the data in ${basename(image)}`);
  if (hasFileSystem) await run("fsck.ext4", "-f", "-n", image);
  const at = find(await Deno.readFile(image), MESSAGE);
  if (at < 0) throw new Problem("the data is not in the image");
  console.log(`Found ${JSON.stringify(MESSAGE)} at byte ${at}.`);
}

/** Writes a file to the file system on a device. */
async function writeFile(device: string, directory: string): Promise<void> {
  say("Mount it, write a file, unmount it");
  await Deno.mkdir(directory);
  await run("mount", device, directory);
  try {
    await Deno.writeTextFile(`${directory}/hello.txt`, MESSAGE);
    console.log(`wrote ${directory}/hello.txt`);
  } finally {
    await run("umount", directory);
  }
}

/** Writes a block to a device. */
async function writeBlock(device: string): Promise<void> {
  say("Write its first block");
  const block = new Uint8Array(512);
  new TextEncoder().encodeInto(MESSAGE, block);
  await Deno.writeFile(device, block, { create: false });
}

function find(bytes: Uint8Array, text: string): number {
  const wanted = new TextEncoder().encode(text);
  for (let at = bytes.indexOf(wanted[0]!); at >= 0;) {
    if (wanted.every((byte, index) => bytes[at + index] === byte)) return at;
    at = bytes.indexOf(wanted[0]!, at + 1);
  }
  return -1;
}

/** Returns the reason why attaching cannot work here, if it is known. */
function obstacle(): string | undefined {
  if (Deno.build.os !== "linux") return "loop devices exist only on Linux";
  if (Deno.uid() !== 0) return "attaching a file requires root: try sudo";
  try {
    Deno.statSync("/dev/loop-control");
  } catch {
    return "/dev/loop-control is missing: load the driver with modprobe loop";
  }
  return undefined;
}

async function main(): Promise<void> {
  const reason = obstacle();
  if (reason !== undefined) throw new Problem(reason);
  const [image] = Deno.args;
  if (image !== undefined) return await show(image);
  const directory = await Deno.makeTempDir({ prefix: "loopdev-demo-" });
  try {
    await make(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
  console.log("\nThe image was removed.");
}

try {
  await main();
} catch (error) {
  if (!(error instanceof Problem || error instanceof LoopError)) throw error;
  console.error(`demo: ${error.message}`);
  Deno.exitCode = 1;
}
