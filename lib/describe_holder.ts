/** Describes holders in words. */
import { printable } from "./errors.ts";
import type { Holder } from "./holder.ts";

/**
 * Describes a holder in one line: `mounted on /mnt/a`,
 * `open in process 4242 (qemu-system-x86)`. The name of a partition comes first. Names
 * and commands chosen by other users are escaped for the terminal and cut at 200
 * characters.
 *
 * @param holder A holder found by {@linkcode holders}.
 * @returns One line, without a newline.
 *
 * @example Describe a mount of a partition
 * ```ts
 * import { describeHolder } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(
 *   describeHolder({ kind: "mount", device: "/dev/loop3p1", target: "/mnt" }),
 *   "/dev/loop3p1 mounted on /mnt",
 * );
 * ```
 */
export function describeHolder(holder: Holder): string {
  const isDisk = /\/loop\d+$/.test(holder.device);
  return `${isDisk ? "" : `${printable(holder.device)} `}${use(holder)}`;
}

function use(holder: Holder): string {
  switch (holder.kind) {
    case "mount": {
      const where = holder.pid === undefined
        ? ""
        : `, as process ${holder.pid} sees it`;
      return `mounted on ${printable(holder.target)}${where}`;
    }
    case "file":
      return `not mounted on any directory, but in use by ${
        processOf(holder)
      }: ${printable(holder.path)}`;
    case "swap":
      return "used for swap";
    case "block": {
      const label = holder.label === undefined
        ? ""
        : ` (${printable(holder.label)})`;
      return `used by ${printable(holder.name)}${label}`;
    }
    case "process": {
      const isOurs = holder.pid === Deno.pid;
      if (holder.fd < 0) return `mapped by ${processOf(holder)}`;
      return isOurs
        ? `open in this process (descriptor ${holder.fd})`
        : `open in ${processOf(holder)}`;
    }
  }
}

function processOf({ pid, command }: { pid: number; command: string }): string {
  return pid === Deno.pid
    ? "this process"
    : `process ${pid} (${printable(command)})`;
}

/** Maximum number of holders named in a message. */
const MAX_NAMED = 10;

/** Describes holders for a message: the first ones by name, the rest by number. */
export function describeHolders(
  { holders, complete }: { holders: readonly Holder[]; complete: boolean },
): string[] {
  const words = holders.slice(0, MAX_NAMED).map(describeHolder);
  const rest = holders.length - words.length;
  if (rest > 0) words.push(`and ${rest} more`);
  if (!complete) words.push("some processes and mounts could not be checked");
  return words;
}
