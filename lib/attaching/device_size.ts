/** Computes the size of a device over a file, and rejects an empty one. */
import { LoopError } from "../errors.ts";
import type { ConfigureOptions } from "../kernel/configuration.ts";
import { EINVAL } from "../sys/errno.ts";
import type { LoopConfig } from "../sys/loop_uapi.ts";
import type { Backing } from "./backing.ts";

/** The kernel's default block size, unless direct I/O requires a larger one. */
export const DEFAULT_BLOCK_SIZE = 512;

/** The requested configuration. */
export interface Wanted {
  readonly options: ConfigureOptions;
  readonly config: LoopConfig;
  readonly backing: Backing;
}

/**
 * Computes the size of a device over a file of the given size: the whole sectors after
 * the offset, up to the limit.
 */
export function deviceSize(
  fileSize: bigint,
  { offset, sizelimit }: { offset: bigint; sizelimit: bigint },
): bigint {
  let size = fileSize > offset ? fileSize - offset : 0n;
  if (sizelimit !== 0n && sizelimit < size) size = sizelimit;
  return size & ~511n;
}

/** Throws if a device has no whole block, or would have none once bound. */
export function refuseEmptyRange(
  { options, config, backing }: Wanted,
  size: bigint = deviceSize(backing.size, config.info),
): void {
  const blockSize = options.blockSize ?? DEFAULT_BLOCK_SIZE;
  if (size < BigInt(blockSize)) throw emptyRange(backing, config, blockSize);
}

function emptyRange(
  { name, size }: Backing,
  { info: { offset } }: LoopConfig,
  blockSize: number,
): LoopError {
  const isPastEnd = offset > 0n && offset >= size;
  return new LoopError(`Cannot attach ${name}`, {
    errno: EINVAL,
    operation: "attach",
    hint: isPastEnd
      ? `offset ${offset} is past the end: the file has ${size} bytes`
      : `the range is smaller than one block of ${blockSize} bytes: the file has ${size} bytes`,
  });
}
