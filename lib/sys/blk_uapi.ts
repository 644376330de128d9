/** `<linux/fs.h>`: what every block device understands. Numbers of 64-bit architectures. */

/** Makes a device read-only or writable again; stays when the backing file goes. Argument: `const int *`. */
export const BLKROSET = 0x125d;
/** Whether the device is read-only. Argument: `int *`. */
export const BLKROGET = 0x125e;
/** Writes back and drops the cached pages. No argument. */
export const BLKFLSBUF = 0x1261;
/** The logical block size in bytes. Argument: `int *`. */
export const BLKSSZGET = 0x1268;
/** The size in bytes. Argument: `u64 *`. */
export const BLKGETSIZE64 = 0x80081272;
/** The disk sequence number, Linux 5.15. Argument: `u64 *`. */
export const BLKGETDISKSEQ = 0x80081280;
