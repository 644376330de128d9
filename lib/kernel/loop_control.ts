/** Controls `/dev/loop-control`, which adds, removes and finds loop devices. */
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

/** Options of the {@linkcode LoopControl} constructor. */
export interface LoopControlOptions {
  /**
   * Descriptor of the directory that holds `loop-control`. 0 is a valid descriptor. By
   * default, the node is in `/dev`.
   */
  dirFd?: number | undefined;
}

/**
 * The open `/dev/loop-control` (Linux 3.1). Each method is one ioctl of `linux/loop.h`.
 *
 * Closing or disposing closes the descriptor. Requires `--allow-ffi` and root.
 *
 * @example Add a device and remove it again
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
   * Opens `/dev/loop-control`, or the node of that name in `dirFd`. If the loop driver
   * is a module, opening the node loads it.
   *
   * @param options The directory of the node.
   * @throws {LoopError} If the node does not exist (`ENOENT`) or may not be opened
   * (`EACCES`), or there is no loop driver (`ENODEV`).
   * @throws {UnexpectedDevice} If the node is not loop-control.
   *
   * @example Open loop-control through a directory
   * ```ts
   * import { LoopControl, openDirectory } from "@loopdev/loopdev";
   * import { assert } from "@std/assert";
   *
   * using dev = openDirectory("/dev");
   * using control = new LoopControl({ dirFd: dev.fd });
   * assert(control.getUnbound() >= 0);
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
   * Adds a loop device without a file (`LOOP_CTL_ADD`).
   *
   * @param minor The number of the new device. By default, or with -1, the lowest
   * number that does not exist. (Linux 5.10 refuses -1 while another device is unbound,
   * so there the numbers are tried in turn.)
   * @returns The number of the device.
   * @throws {LoopError} If the device already exists (`EEXIST`).
   *
   * @example Add a device
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * const minor = control.add();
   * {
   *   using loop = new Loop(minor);
   *   assertEquals(loop.getSize(), 0);
   * }
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
        [EEXIST]: "it already exists",
        [EINVAL]: "the number is too high for this kernel",
      },
    }));
  }

  #add(minor: number): number {
    const fd = this.#open("LOOP_CTL_ADD");
    return ioctlValue(fd, LOOP_CTL_ADD, BigInt(minor));
  }

  /**
   * Removes a loop device that has no file attached and is not open
   * (`LOOP_CTL_REMOVE`). Takes about 44 ms.
   *
   * @param minor The number of the device. By default, or with -1, the lowest one in
   * sysfs that can be removed. (The kernel itself refuses -1.)
   * @returns The number of the removed device.
   * @throws {LoopError} If a file is attached or the device is open (`EBUSY`), or there
   * is no such device (`ENODEV`).
   *
   * @example Remove a device
   * ```ts
   * import { LoopControl, LoopError } from "@loopdev/loopdev";
   * import { assertThrows } from "@std/assert";
   *
   * using control = new LoopControl();
   * const minor = control.add();
   * control.remove(minor);
   * assertThrows(() => control.remove(minor), LoopError, "ENODEV");
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
        // In use, or removed since it was listed.
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
      { [EBUSY]: "a file is attached to it, or a process has it open" },
    );
  }

  /**
   * Returns the number of a device without a file (`LOOP_CTL_GET_FREE`). The kernel
   * adds one if there is none. The device is not reserved: another process may take it
   * before you bind it. {@linkcode attach} handles that.
   *
   * @returns The number of the device.
   *
   * @example Open a free device
   * ```ts
   * import { Loop, LoopControl } from "@loopdev/loopdev";
   * import { assertEquals } from "@std/assert";
   *
   * using control = new LoopControl();
   * using loop = new Loop(control.getUnbound());
   * assertEquals(loop.name, `loop${loop.minor}`);
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
   * Closes the descriptor. A second call does nothing.
   *
   * @example Close loop-control
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

  /** Closes the descriptor, like {@linkcode LoopControl.close}. */
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

/** Opens the node for the constructor. */
function openNodeOf(options: LoopControlOptions): OpenedNode {
  checkOptions(options, ["dirFd"]);
  const dirFd = options.dirFd === undefined
    ? AT_FDCWD
    : checkDescriptor(options.dirFd, "dirFd");
  return openControlNode(
    dirFd === AT_FDCWD ? CONTROL : placeIn(dirFd, "loop-control"),
  );
}
