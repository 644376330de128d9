/**
 * Attaches a file, prints the device, and detaches it:
 *
 *     deno run --allow-ffi examples/attach.ts disk.img
 *
 * Without a file, attaches one in memory.
 */
import { attach, inspect, openMemory } from "@loopdev/loopdev";

using memory = openMemory(16 * 1024 * 1024);
{
  await using device = await attach(Deno.args[0] ?? memory, {});
  console.log(
    `${device.path} has ${device.size} bytes in blocks of ${device.blockSize}`,
  );
  console.log(inspect(device));
} // detached here, even if an exception leaves the block
console.log("detached");
