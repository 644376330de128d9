/**
 * Calls the ioctls directly: finds a device, binds a file, changes it and unbinds it:
 *
 *     deno run --allow-ffi examples/kernel_layer.ts
 *
 * attach() and detach() do this safely beside other processes. This example shows the
 * layer below.
 */
import { Loop, LoopControl, LoopError, openMemory } from "@loopdev/loopdev";

using control = new LoopControl();
using memory = openMemory(8 * 1024 * 1024);

/** Binds the first device that no other process takes in the meantime. */
function bind(): Loop {
  for (;;) {
    const loop = new Loop(control.getUnbound());
    try {
      // The kernel detaches it at the last close, whatever happens here.
      loop.configure(memory.fd, { autoclear: true, reference: "example" });
      return loop;
    } catch (error) {
      loop.close();
      if (!(error instanceof LoopError && error.code === "EBUSY")) throw error;
    }
  }
}

using loop = bind();
console.log(loop.path, loop.getStatus());

loop.setStatus({ offset: 1024 * 1024 });
loop.setBlockSize(4096);
console.log(`${loop.getSize()} bytes in blocks of ${loop.getBlockSize()}`);

loop.clearFd(); // the kernel detaches when the descriptor is closed
