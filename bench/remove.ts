/**
 * Removes devices, as many at a time as Deno has threads for blocking calls:
 *
 *     remove.ts MINOR...
 *
 * The error number of such a call is lost, so the caller checks which devices are left.
 */
import { LOOP_CTL_REMOVE, LoopControl } from "@loopdev/loopdev";

if (import.meta.main) {
  const { symbols } = Deno.dlopen("libc.so.6", {
    ioctl: {
      parameters: ["i32", "u32", "i64"],
      result: "i32",
      nonblocking: true,
    },
  });
  using control = new LoopControl();
  await Promise.all(
    Deno.args.map((minor) =>
      symbols.ioctl(control.fd, LOOP_CTL_REMOVE, BigInt(minor))
    ),
  );
}
