import type { FileSystem } from "../mounting/file_system.ts";

/** A partition of a loop device or of an image: plain data. */
export interface Partition {
  /** The number of the partition: 1 for `/dev/loop3p1`. */
  number: number;
  /** The path of its node: `/dev/loop3p1`. Of an image, the name that sfdisk gives it: `disk.img1`. */
  path: string;
  /** Where it begins on the disk, in bytes. */
  start: number;
  /** Its size in bytes, as far as it is on the disk. Of an extended partition, which Linux shows only in part, its full size. */
  size: number;
  /** GPT: the type GUID, in upper case. MBR: `"0x83"`. Absent where only the kernel can read the table. */
  type?: string;
  /** GPT: its name, when it has one. */
  name?: string;
  /** GPT: its GUID, in upper case. MBR: disk id and number, `"1234abcd-01"`. */
  uuid?: string;
  /** What is in it, when it is recognized. */
  fileSystem?: FileSystem;
  /** Why it is not as the table says, or not there: `overlaps partition 2`, in one line. */
  problem?: string;
}
