/**
 * Finds devices that somebody forgot, and detaches them: those of a reference, which is
 * kept with the device, and those whose file was deleted.
 *
 *     deno run --allow-ffi examples/leaks.ts [REFERENCE]
 *
 * Without a reference it leaks two devices of its own first.
 */
import { attach, detach, list, Loop, openMemory } from "@loopdev/loopdev";

/** The reference that a device was attached with. */
function referenceOf(minor: number): string {
  using loop = new Loop(minor, { readOnly: true });
  return loop.getStatus().reference;
}

const reference = Deno.args[0] ?? `build-${crypto.randomUUID()}`;
if (Deno.args[0] === undefined) {
  for (let leak = 0; leak < 2; leak++) {
    using memory = openMemory(1 << 20);
    await (await attach(memory, { reference })).persist();
  }
}

for (const device of list()) {
  if (referenceOf(device.minor) !== reference) {
    if (device.deleted && !device.backingFile.startsWith("/memfd:")) {
      console.log(`${device.path} keeps the deleted ${device.backingFile}`);
    }
    continue;
  }
  // The device of the list, not of the number: it may be somebody else's by now.
  await detach(device);
  console.log(`${device.path} detached`);
}
