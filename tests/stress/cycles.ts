/** Attaches and detaches: `cycles.ts FILE COUNT`. Prints the devices it used. */
import { attach } from "@loopdev/loopdev";

if (import.meta.main) {
  const [file, count] = Deno.args;
  const devices = new Set<string>();
  for (let cycle = 0; cycle < Number(count); cycle++) {
    await using device = await attach(file!);
    devices.add(device.path);
  }
  console.log([...devices].join(" "));
}
