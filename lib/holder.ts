/** Data types for the holders of a device. */

/**
 * A user of a device, which keeps it busy. `device` is the path of the disk or
 * partition in use.
 */
export type Holder =
  | {
    /** A mounted file system. */
    kind: "mount";
    /** The disk or partition. */
    device: string;
    /** The mount point, as processes in that mount namespace see it. */
    target: string;
    /** A process in the mount namespace of the mount, if that is not ours. */
    pid?: number;
  }
  | {
    /**
     * A process that uses a file on a file system that is not mounted on any directory: after
     * a lazy unmount, or in a private mount that only a descriptor leads to. In the error
     * of {@linkcode Mount.unmount}, also a process that uses a file on a mounted one.
     */
    kind: "file";
    /** The disk or partition. */
    device: string;
    /** The process ID. */
    pid: number;
    /** The command name, up to 15 bytes. */
    command: string;
    /** One of the files in use, relative to the root of that file system. */
    path: string;
  }
  | {
    /** Swap space in use. */
    kind: "swap";
    /** The disk or partition. */
    device: string;
  }
  | {
    /**
     * A block device on top: device-mapper, md, another loop device, or a Btrfs without
     * a visible mount.
     */
    kind: "block";
    /** The disk or partition. */
    device: string;
    /** The name of the device on top: `dm-0`, `md127`, `loop5`, `btrfs`. */
    name: string;
    /** The name of the device-mapper mapping, or the UUID of the Btrfs. */
    label?: string;
  }
  | {
    /** A process that has the node open or mapped into its memory. */
    kind: "process";
    /** The disk or partition. */
    device: string;
    /** The process ID. */
    pid: number;
    /** The command name, up to 15 bytes. */
    command: string;
    /** The descriptor, or -1 for a mapping whose descriptor was closed. */
    fd: number;
  };

/** Result of {@linkcode holders}. */
export interface Holders {
  /** The holders of the device and its partitions. */
  holders: Holder[];
  /**
   * `true` if everything was checked. `false` if some processes belong to other users
   * and this process is not root, or if the search ran out of time.
   */
  complete: boolean;
}
