/** `/dev/loop-control`: adding, removing and finding loop devices. */
import {
  checkDescriptor,
  checkMinor,
  checkOptions,
  MAX_MINOR,
} from "../arguments.ts";
import { LoopError, quote, unwrap } from "../errors.ts";
import { FileDescriptor } from "./file_descriptor.ts";
import { openControlNode, OpenedNode, placeIn } from "./opened_node.ts";
import { existingMinors, isBound } from "./loop_sysfs.ts";
import { EBADF, EBUSY, EEXIST, EINVAL, ENODEV } from "../sys/errno.ts";
import { AT_FDCWD, ioctlValue } from "../sys/libc.ts";
import {
  LOOP_CTL_ADD,
  LOOP_CTL_GET_FREE,
  LOOP_CTL_REMOVE,
} from "../sys/loop_uapi.ts";

/** How {@linkcode LoopControl} opens its node. */
export interface LoopControlOptions {
  /** A descriptor of the directory that holds `loop-control`; without it `/dev`. 0 is a valid descriptor. */
  dirFd?: number | undefined;
}

/**
 * The open `/dev/loop-control` (Linux 3.1). Each method is one ioctl of
 * `linux/loop.h`.
 *
 * Closing or disposing closes the descriptor. Requires `--allow-ffi` and root.
 *
 * @example Adding a device, and removing it again
 * ```ts
 * import { LoopControl } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using control = new LoopControl();
 * const minor = control.add();
 * assertEquals(control.remove(minor), minor);
 * ```
 */
export class LoopControl implements Disposable {
  readonly #path: string;
  #descriptor: FileDescriptor | undefined;

  /**
   * Opens `/dev/loop-control`, or the node of that name in `dirFd`. Opening it loads
   * the loop module where that is one.
   *
   * @param options Where the node is.
   * @throws {LoopError} `ENOENT` without a node, `EACCES` without permission, `ENODEV`
   * without a loop driver
   * @throws {UnexpectedDevice} when the node is something else
   *
   * @example
   * ```ts
   * import { LoopControl } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * console.log(control.fd);
   * ```
   */
  constructor(options: LoopControlOptions = {}) {
    const node = options instanceof OpenedNode ? options : openNodeOf(options);
    this.#path = node.path;
    this.#descriptor = new FileDescriptor(node.fd);
  }

  /** The open descriptor; -1 once it is closed. */
  get fd(): number {
    return this.#descriptor?.fd ?? -1;
  }

  /**
   * `LOOP_CTL_ADD`: adds a loop device, to which no file is attached.
   *
   * @param minor Its number; without one, or -1, the lowest that does not exist.
   * (Linux 5.10 refuses -1 while another device is unbound: there the numbers are
   * tried one after the other.)
   * @returns The number.
   * @throws {LoopError} `EEXIST` when there is one of that number
   *
   * @example
   * ```ts
   * import { LoopControl } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * const minor = control.add();
   * control.remove(minor);
   * ```
   */
  add(minor = -1): number {
    checkMinor(minor, -1);
    let result = this.#add(minor);
    if (minor === -1) {
      for (let next = 0; result === -EEXIST && next <= MAX_MINOR; next++) {
        result = this.#add(next);
      }
    }
    return unwrap(result, () => ({
      action: `Cannot add ${minor === -1 ? "a loop device" : `loop${minor}`}`,
      operation: "LOOP_CTL_ADD",
      path: this.#path,
      hint: {
        [EEXIST]: "it exists",
        [EINVAL]: "the number is too high for this kernel",
      },
    }));
  }

  #add(minor: number): number {
    const fd = this.#open("LOOP_CTL_ADD");
    return ioctlValue(fd, LOOP_CTL_ADD, BigInt(minor));
  }

  /**
   * `LOOP_CTL_REMOVE`: removes a loop device to which no file is attached and which
   * nobody has open. Takes about 44 ms.
   *
   * @param minor Its number; without one, or -1, the lowest in sysfs that can be
   * removed. (The kernel itself refuses -1.)
   * @returns The number.
   * @throws {LoopError} `EBUSY` when a file is attached or somebody has it open;
   * `ENODEV` when there is no such device
   *
   * @example
   * ```ts
   * import { LoopControl } from "@loopdev/loopdev";
   *
   * using control = new LoopControl();
   * const minor = control.add();
   * control.remove(minor);
   * ```
   */
  remove(minor = -1): number {
    checkMinor(minor, -1);
    if (minor !== -1) {
      this.#remove(minor);
      return minor;
    }
    this.#open("LOOP_CTL_REMOVE");
    for (const candidate of existingMinors()) {
      if (isBound(candidate)) continue;
      try {
        this.#remove(candidate);
        return candidate;
      } catch (error) {
        if (!(error instanceof LoopError)) throw error;
        // In use, or gone since it was listed.
        if (error.errno !== EBUSY && error.errno !== ENODEV) throw error;
      }
    }
    throw new LoopError("Cannot remove a loop device", {
      errno: ENODEV,
      operation: "LOOP_CTL_REMOVE",
      hint: "all of them are in use",
    });
  }

  #remove(minor: number): void {
    this.#call(
      "LOOP_CTL_REMOVE",
      LOOP_CTL_REMOVE,
      minor,
      `remove loop${minor}`,
      { [EBUSY]: "a file is attached to it, or somebody has it open" },
    );
  }

  /**
   * `LOOP_CTL_GET_FREE`: the number of a device to which no file is attached; the
   * kernel adds one when there is none. Nothing is reserved: somebody may take it
   * before you bind it. {@linkcode attach} handles that.
   *
   * @returns The number.
   *
   * @example
   * ```ts
   * import { LoopControl } from "@loopdev/loopdev";
   * import { assert } from "@std/assert";
   *
   * using control = new LoopControl();
   * assert(control.getUnbound() >= 0);
   * ```
   */
  getUnbound(): number {
    return this.#call(
      "LOOP_CTL_GET_FREE",
      LOOP_CTL_GET_FREE,
      0,
      "find an unbound loop device",
    );
  }

  /**
   * Closes the descriptor. Doing it again does nothing.
   *
   * @example
   * ```ts
   * import { LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * const control = new LoopControl();
   * control.close();
   * assertEquals(control.fd, -1);
   * ```
   */
  close(): void {
    this.#descriptor?.close();
  }

  /** The same as {@linkcode LoopControl.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  #open(operation: string): number {
    const fd = this.fd;
    if (fd !== -1) return fd;
    throw new LoopError(`Cannot use ${quote(this.#path)}`, {
      errno: EBADF,
      operation,
      path: this.#path,
      hint: "it is closed",
    });
  }

  #call(
    operation: string,
    request: number,
    value: number,
    what: string,
    hint?: Record<number, string>,
  ): number {
    return unwrap(
      ioctlValue(this.#open(operation), request, BigInt(value)),
      () => ({ action: `Cannot ${what}`, operation, path: this.#path, hint }),
    );
  }
}

const CONTROL = placeIn(AT_FDCWD, "loop-control");

/** Opens the node that the caller of the constructor means. */
function openNodeOf(options: LoopControlOptions): OpenedNode {
  checkOptions(options, ["dirFd"]);
  const dirFd = options.dirFd === undefined
    ? AT_FDCWD
    : checkDescriptor(options.dirFd, "dirFd");
  return openControlNode(
    dirFd === AT_FDCWD ? CONTROL : placeIn(dirFd, "loop-control"),
  );
}
