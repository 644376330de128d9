import type { FileSystem } from "../mounting/recognize.ts";

/** A partition of a loop device or of an image, as plain data. */
export interface Partition {
  /** The number of the partition: 1 for `/dev/loop3p1`. */
  number: number;
  /**
   * The path of its node: `/dev/loop3p1`. For an image, the name that sfdisk uses:
   * `disk.img1`.
   */
  path: string;
  /** The offset on the disk at which it starts, in bytes. */
  start: number;
  /**
   * Its size in bytes, up to the end of the disk. For an extended partition, which
   * Linux shows only in part, its full size.
   */
  size: number;
  /**
   * GPT: the type GUID, in upper case. MBR: `"0x83"`. Absent if only the kernel can
   * read the table.
   */
  type?: string;
  /** GPT: its name, if it has one. */
  name?: string;
  /** GPT: its GUID, in upper case. MBR: the disk ID and the number, `"1234abcd-01"`. */
  uuid?: string;
  /** The file system in it, if it is recognized. */
  fileSystem?: FileSystem;
  /**
   * Reason why it differs from the table or is missing, in one line:
   * `overlaps partition 2`.
   */
  problem?: string;
}
