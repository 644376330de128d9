/** How large a device over a file is, and that it is not empty. */
import { LoopError } from "../errors.ts";
import type { ConfigureOptions } from "../kernel/configuration.ts";
import { EINVAL } from "../sys/errno.ts";
import type { LoopConfig } from "../sys/loop_uapi.ts";
import type { Backing } from "./backing.ts";

/** The block size that the kernel chooses, unless it raises it for direct I/O. */
export const DEFAULT_BLOCK_SIZE = 512;

/** What was asked for. */
export interface Wanted {
  readonly options: ConfigureOptions;
  readonly config: LoopConfig;
  readonly backing: Backing;
}

/** How large a device over a file of that size is: whole sectors of what is left behind the offset. */
export function deviceSize(
  fileSize: bigint,
  { offset, sizelimit }: { offset: bigint; sizelimit: bigint },
): bigint {
  let size = fileSize > offset ? fileSize - offset : 0n;
  if (sizelimit !== 0n && sizelimit < size) size = sizelimit;
  return size & ~511n;
}

/** Throws when a device has no whole block, or would have none when it is bound. */
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
      : `the range holds no whole block of ${blockSize} bytes: the file has ${size} bytes`,
  });
}
