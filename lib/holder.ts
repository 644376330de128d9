/** What can keep a device busy. */

/**
 * Somebody who keeps a device busy. `device` is the path of the disk or of the
 * partition that is held.
 */
export type Holder =
  | {
    /** A file system is mounted. */
    kind: "mount";
    /** The disk or partition. */
    device: string;
    /** Where, as the processes of that mount namespace see it. */
    target: string;
  }
  | {
    /** It is used for swapping. */
    kind: "swap";
    /** The disk or partition. */
    device: string;
  }
  | {
    /** Device-mapper, md, or another loop device on top. */
    kind: "block";
    /** The disk or partition. */
    device: string;
    /** The device on top: `dm-0`, `md127`, `loop5`. */
    name: string;
  }
  | {
    /** A process has the node open. */
    kind: "process";
    /** The disk or partition. */
    device: string;
    /** The process. */
    pid: number;
    /** Its command, at most 15 bytes of it. */
    command: string;
    /** Its descriptor. */
    fd: number;
  };

/** A holder in one line: `mounted on /mnt/a`, `open in process 4242 (qemu-system-x86)`. */
export function describeHolder(holder: Holder, disk: string): string {
  const prefix = holder.device === disk ? "" : `${holder.device} `;
  switch (holder.kind) {
    case "mount":
      return `${prefix}mounted on ${holder.target}`;
    case "swap":
      return `${prefix}used for swap`;
    case "block":
      return `${prefix}used by ${holder.name}`;
    case "process":
      return holder.pid === Deno.pid
        ? `${prefix}open in this process (descriptor ${holder.fd})`
        : `${prefix}open in process ${holder.pid} (${holder.command})`;
  }
}
