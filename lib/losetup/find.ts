/** Finds an unused device. */
import { LoopError } from "../errors.ts";
import { LoopControl } from "../kernel/loop_control.ts";
import { isBound, minorsIn } from "../kernel/loop_sysfs.ts";
import { ENOENT } from "../sys/errno.ts";
import type { ByteString } from "./byte_string.ts";
import { isLoopNode } from "./device.ts";
import { orFail, systemFailure } from "./failure.ts";

const NONE = "cannot find an unused loop device";

/** Returns the path of the first free device. The kernel adds one if there is none. */
export function findUnused(): ByteString {
  const node = findNodeWithoutControl();
  if (node !== undefined) return node;
  return orFail(NONE, () => {
    using control = new LoopControl();
    return `/dev/loop${control.getUnbound()}`;
  });
}

/**
 * Returns the first node of a free device if `/dev/loop-control` may not be used, or
 * `undefined` if it may.
 */
export function findNodeWithoutControl(): ByteString | undefined {
  try {
    new LoopControl().close();
    return undefined;
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    const minors = minorsIn("/dev");
    const minor = (typeof minors === "number" ? [] : minors)
      .find((minor) => isLoopNode(`/dev/loop${minor}`) && !isBound(minor));
    if (minor !== undefined) return `/dev/loop${minor}`;
    throw systemFailure(NONE, ENOENT);
  }
}
