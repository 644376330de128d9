/** A file system, or what else fills a device, as its superblock names it. Plain data. */
export interface FileSystem {
  /** As mount(8) and blkid name it: `ext4`, `vfat`, `crypto_LUKS`. */
  type: string;
  /** Its label, unless it is empty. */
  label?: string;
  /** Its UUID or serial number, as blkid writes it. */
  uuid?: string;
}
