/**
 * Verifies that a device is configured as requested: the kernel silently ignores some
 * requests, and some versions have bugs.
 */
import { DEFAULT_BLOCK_SIZE, deviceSize, type Wanted } from "./device_size.ts";
import { directIoAlignment } from "../sys/stat.ts";
import { decodeFlags } from "../kernel/configuration.ts";
import type { Backing } from "./backing.ts";
import type { BackingFile } from "./bound_loop.ts";
import { LoopError, quote, unwrap } from "../errors.ts";
import {
  currentInfo,
  exactSize,
  fitPageCache,
  type Loop,
} from "../kernel/loop.ts";
import { BLKROSET } from "../sys/blk_uapi.ts";
import { EINVAL, EIO } from "../sys/errno.ts";
import { ioctlPointer } from "../sys/libc.ts";
import type { LoopConfig, LoopInfo64 } from "../sys/loop_uapi.ts";

/** Result of verifying a device. */
export interface Verified {
  readonly backing: BackingFile;
  /** Size of the device in bytes. */
  readonly size: bigint;
}

/** Throws if the device is not configured as requested. */
export function verify(loop: Loop, wanted: Wanted): Verified {
  const info = currentInfo(loop);
  const { options, config, backing } = wanted;
  const expect: Expect = (what, want, got) => {
    if (want !== undefined && got !== want) {
      throw mismatch(loop, wanted, info, { what, want, got });
    }
  };
  expect("backing device", backing.stat.device, Number(info.device));
  expect("backing inode", backing.stat.inode, info.inode);
  expect("offset", config.info.offset, info.offset);
  expect("sizelimit", config.info.sizelimit, info.sizelimit);
  expect("reference", config.info.fileName, info.fileName);
  const flags = decodeFlags(info.flags);
  const readOnly = options.readOnly ?? false;
  expect("autoclear", options.autoclear, flags.autoclear);
  expect("partscan", options.partscan, flags.partscan);
  expect("directIo", options.directIo, flags.directIo);
  expect("readOnly", readOnly, flags.readOnly);
  let isReadOnly = loop.isReadOnly();
  if (isReadOnly && !readOnly) {
    makeWritable(loop);
    isReadOnly = loop.isReadOnly();
  }
  expect("readOnly", readOnly, isReadOnly);
  const blockSize = loop.getBlockSize();
  expect("block size", options.blockSize, blockSize);
  // The blocks of a page cache are never smaller than 512 bytes.
  if (blockSize > DEFAULT_BLOCK_SIZE) fitPageCache(loop, blockSize);
  const { device, inode } = info;
  const size = verifySize(loop, wanted, expect);
  return { backing: { device, inode }, size };
}

/** Throws if a property is not as requested; `undefined` requests nothing. */
type Expect = <T>(what: string, want: T | undefined, got: T) => void;

function verifySize(
  loop: Loop,
  { config, backing }: Wanted,
  expect: Expect,
): bigint {
  const size = exactSize(loop);
  const first = deviceSize(backing.size, config.info);
  if (size !== first) {
    // The file may have grown or shrunk before or after the kernel read its size.
    const last = deviceSize(backing.currentSize(), config.info);
    const [least, most] = first < last ? [first, last] : [last, first];
    if (size < least || size > most) expect("size", last, size);
  }
  return size;
}

function mismatch(
  { path }: Loop,
  { config, backing }: Wanted,
  info: LoopInfo64,
  { what, want, got }: { what: string; want: unknown; got: unknown },
): LoopError {
  let [errno, why] = [EIO, ""];
  if (what === "directIo") {
    [errno, why] = [EINVAL, `: ${whyDirectIo(backing, config, info)}`];
  } else if (what === "block size" && decodeFlags(info.flags).directIo) {
    errno = EINVAL;
    why =
      `: direct I/O to the file requires it; use blockSize: ${got} (-b ${got})`;
  }
  return new LoopError(
    `Cannot attach ${backing.name} to ${quote(path)} as requested`,
    {
      errno,
      operation: "LOOP_CONFIGURE",
      path,
      hint: `requested ${what} ${want}, got ${got}${why}`,
    },
  );
}

/**
 * Explains why direct I/O is not as requested. The kernel silently ignores the request
 * if it is not possible.
 */
function whyDirectIo(
  backing: Backing,
  config: LoopConfig,
  info: LoopInfo64,
): string {
  if (decodeFlags(info.flags).directIo) {
    return "the descriptor was opened for direct I/O";
  }
  const alignment = directIoAlignment(backing.fd);
  if (alignment === 0) return "the file does not support direct I/O";
  const { offset } = config.info;
  if (alignment !== undefined && offset % BigInt(alignment) !== 0n) {
    return `offset ${offset} is not a multiple of ${alignment}, the block size of its file system`;
  }
  if (alignment !== undefined && config.blockSize < alignment) {
    return `the block size must be at least ${alignment}, that of its file system`;
  }
  return "the file does not support direct I/O, or the offset or block size is not a multiple of the block size of its file system";
}

/**
 * Clears the read-only bit (`BLKROSET`) that a previous user set, because it outlives
 * the binding.
 */
function makeWritable(loop: Loop): void {
  unwrap(
    ioctlPointer(loop.fd, BLKROSET, new Uint8Array(4)),
    () => ({
      action: `Cannot make ${quote(loop.path)} writable`,
      operation: "BLKROSET",
      path: loop.path,
      hint: "an earlier user made the device read-only",
    }),
  );
}
