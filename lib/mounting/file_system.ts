/**
 * A file system, or other content of a device, as its superblock describes it. Plain
 * data.
 */
export interface FileSystem {
  /** The type as mount(8) and blkid name it: `ext4`, `vfat`, `crypto_LUKS`. */
  type: string;
  /** The label, if it is not empty. */
  label?: string;
  /** The UUID or serial number, formatted as by blkid. */
  uuid?: string;
}
