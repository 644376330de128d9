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
    /** A process of the mount namespace that it is mounted in, when that is not ours. */
    pid?: number;
  }
  | {
    /**
     * A process uses a file of a file system on it that is mounted on no directory: it was
     * unmounted lazily, or its mount is private, and only a descriptor leads to it. In the
     * error of {@linkcode Mount.unmount} also of one that is mounted.
     */
    kind: "file";
    /** The disk or partition. */
    device: string;
    /** The process. */
    pid: number;
    /** Its command, at most 15 bytes of it. */
    command: string;
    /** One of the files: from the root of that file system, where it is mounted nowhere. */
    path: string;
  }
  | {
    /** It is used for swapping. */
    kind: "swap";
    /** The disk or partition. */
    device: string;
  }
  | {
    /** Device-mapper, md, another loop device, or a Btrfs of which no mount is seen, on top. */
    kind: "block";
    /** The disk or partition. */
    device: string;
    /** The device on top: `dm-0`, `md127`, `loop5`, `btrfs`. */
    name: string;
    /** The name of the mapping of device-mapper, the UUID of the Btrfs. */
    label?: string;
  }
  | {
    /** A process has the node open, or mapped into its memory. */
    kind: "process";
    /** The disk or partition. */
    device: string;
    /** The process. */
    pid: number;
    /** Its command, at most 15 bytes of it. */
    command: string;
    /** Its descriptor; -1 for a mapping whose descriptor was closed. */
    fd: number;
  };

/** What {@linkcode holders} found. */
export interface Holders {
  /** Who keeps the device or a partition of it busy. */
  holders: Holder[];
  /** Whether everything could be looked at: not the doings of other users, without root, nor more than a few seconds allow. */
  complete: boolean;
}
