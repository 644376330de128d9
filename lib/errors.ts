/** Error classes of the library, and the text of their messages. */
import type { Holder } from "./holder.ts";
import { ENODEV, errnoMessage, errnoName, ESTALE } from "./sys/errno.ts";

/** Details of a {@linkcode LoopError}, other than the action that failed. */
export interface LoopErrorDetails {
  /** The error number from the kernel, positive. */
  errno: number;
  /** The call that failed: `LOOP_SET_FD`, `open`. */
  operation: string;
  /** The file or device the call failed on, if any. */
  path?: string | undefined;
  /** A remedy, or an explanation of the error in this context. */
  hint?: string | undefined;
  /** Another error, which this one must not hide. */
  cause?: unknown;
}

/**
 * Error thrown when the kernel refuses a call.
 *
 * The message names what was tried, on what, and what the kernel reported. If there is
 * one remedy, the message includes it.
 *
 * @example Distinguish a missing file from other failures
 * ```ts
 * import { LoopError, openFile } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * try {
 *   using file = openFile("/nowhere/disk.img");
 *   console.log(file.fd);
 * } catch (error) {
 *   if (!(error instanceof LoopError)) throw error;
 *   assertEquals(error.code, "ENOENT");
 *   assertEquals(error.operation, "open");
 * }
 * ```
 */
export class LoopError extends Error {
  /** The name of the class. */
  override readonly name: string = "LoopError";
  /** The symbolic name of the error number: `EBUSY`. */
  readonly code: string;
  /** The error number, positive: 16. */
  readonly errno: number;
  /** The call that failed: an ioctl by its name in `linux/loop.h`, or a system call. */
  readonly operation: string;
  /** The file or device the call failed on, if any. */
  readonly path?: string;

  /**
   * Constructs an error whose message begins with `action`: `Cannot attach "disk.img"`.
   *
   * @param action The action that failed, and its object.
   * @param details The error from the kernel.
   */
  constructor(action: string, details: LoopErrorDetails) {
    const { errno, operation, path, hint, cause } = details;
    const code = errnoName(errno);
    // Names are quoted by the caller; everything else is escaped here.
    super(
      escapeControls(
        `${action}: ${errnoMessage(errno)} (${code})${hint ? `: ${hint}` : ""}`,
      ),
      cause === undefined ? undefined : { cause },
    );
    this.code = code;
    this.errno = errno;
    this.operation = operation;
    if (path !== undefined) this.path = path;
  }
}

/**
 * Error thrown when a device or a partition is in use (`EBUSY`).
 *
 * After a timeout of {@linkcode detach}, the kernel detaches the device when the last
 * user closes it, so nothing has to be repeated; a mount on a target stays, however. With
 * `ifUnused`, and from {@linkcode partitions}, nothing was changed. A write-back error is
 * its `cause`.
 *
 * @example Find out which processes use the device
 * ```ts
 * import { attach, Loop, LoopBusyError, openMemory } from "@loopdev/loopdev";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * using memory = openMemory(1 << 20);
 * const device = await attach(memory);
 * using _other = Loop.open(device.path);
 * const error = await assertRejects(
 *   () => device.detach({ timeout: 10 }),
 *   LoopBusyError,
 * );
 * assertEquals(error.holders[0]?.kind, "process");
 * ```
 */
export class LoopBusyError extends LoopError {
  /** The name of the class. */
  override readonly name: string = "LoopBusyError";
  /** The users of the device, as far as they are visible. */
  readonly holders: Holder[];

  /**
   * Constructs an error with the holders that were found.
   *
   * @param action The action that failed, and its object.
   * @param details The error from the kernel, and the holders.
   */
  constructor(
    action: string,
    details: LoopErrorDetails & { holders: Holder[] },
  ) {
    super(action, details);
    this.holders = details.holders;
  }
}

/**
 * Error thrown when a device is no longer bound to the file it was bound to when its
 * disk sequence number was read (`ESTALE`). The number was reused for another file.
 * Nothing was changed.
 */
export class StaleDeviceError extends LoopError {
  /** The name of the class. */
  override readonly name: string = "StaleDeviceError";

  /**
   * Constructs an error about the device at `path`.
   *
   * @param action The action that failed.
   * @param path The path of the device.
   * @param hint The current binding of the device.
   */
  constructor(action: string, path: string, hint: string) {
    super(action, { errno: ESTALE, operation: "BLKGETDISKSEQ", path, hint });
  }
}

/**
 * Error thrown when a node is not the device its name says: not a block device, or a
 * device with another number (`ENODEV`). The node was not opened.
 */
export class UnexpectedDevice extends LoopError {
  /** The name of the class. */
  override readonly name: string = "UnexpectedDevice";
  /** The loop number that was expected; -1 if any loop device was acceptable. */
  readonly expectedMinor: number;
  /** The device number of the node, encoded as in `st_rdev`; 0 if it is not a device. */
  readonly rdev: number;
  /** The type and permissions of the node, as in `st_mode`. */
  readonly mode: number;

  /**
   * Constructs an error about a node with the given device number and mode.
   *
   * @param expectedMinor The loop number that was expected; -1 for any.
   * @param rdev The device number of the node; 0 if it is not a device.
   * @param mode The type and permissions of the node.
   * @param details The path of the node, and the device it should have been.
   */
  constructor(
    expectedMinor: number,
    rdev: number,
    mode: number,
    details: {
      path?: string | undefined;
      hint?: string | undefined;
      /** The kind of device the node should have been, if not a loop device. */
      wanted?: string;
    } = {},
  ) {
    const what = details.path === undefined ? "the node" : quote(details.path);
    super(`Cannot use ${what} as ${details.wanted ?? wanted(expectedMinor)}`, {
      errno: ENODEV,
      operation: "stat",
      path: details.path,
      hint: details.hint,
    });
    this.expectedMinor = expectedMinor;
    this.rdev = rdev;
    this.mode = mode;
  }
}

function wanted(minor: number): string {
  return minor < 0 ? "a loop device" : `loop${minor}`;
}

/** Description of a failed call, for {@linkcode unwrap}. */
export interface Failure extends Omit<LoopErrorDetails, "errno" | "hint"> {
  /** The action that failed, and its object: `Cannot open "disk.img"`. */
  action: string;
  /** A hint for the user, either fixed or by error number. */
  hint?: string | Record<number, string> | undefined;
}

/**
 * Returns the result of a system call. Throws a `LoopError` if it is a negative error
 * number.
 */
export function unwrap(result: number, failure: () => Failure): number {
  if (result >= 0) return result;
  const errno = -result;
  const { action, hint, ...details } = failure();
  throw new LoopError(action, {
    errno,
    ...details,
    hint: typeof hint === "object" ? hint[errno] : hint,
  });
}

/**
 * Characters that a terminal interprets instead of displaying, by category: controls,
 * formats (direction, zero width, tags), line ends, and unpaired surrogates.
 */
const UNPRINTABLE = "[\\p{Cc}\\p{Cf}\\p{Cs}\\p{Zl}\\p{Zp}]";
let unprintable: RegExp | undefined;

/** Escapes the characters that a terminal acts on. */
function replaceUnprintable(
  text: string,
  escape: (character: string) => string,
): string {
  // Most texts have none, and making the expression takes long for a short program.
  if (/^[ -~]*$/.test(text)) return text;
  unprintable ??= new RegExp(UNPRINTABLE, "gu");
  return text.replace(unprintable, escape);
}

/** Maximum length of a name in a message, because other users choose names. */
const MAX_NAME = 200;

/**
 * Escapes characters that a terminal would interpret, because other users may have
 * chosen the text. Escaping twice has no further effect.
 */
export function escapeControls(text: string): string {
  return replaceUnprintable(text, (control) => {
    const code = control.charCodeAt(0);
    return code < 256
      ? `\\x${code.toString(16).padStart(2, "0")}`
      : unicodeEscape(control);
  });
}

/** Escapes the same characters in a line of JSON, whose meaning does not change. */
export function escapeForJson(line: string): string {
  return replaceUnprintable(line, unicodeEscape);
}

/** Formats a name chosen by others for a message: on one line, at most 200 characters. */
export function printable(name: string): string {
  return escapeControls(shortened(name));
}

/** Quotes a name for a message: on one line, whatever it contains. */
export function quote(name: string): string {
  return escapeForJson(JSON.stringify(shortened(name)));
}

/** Escapes a character as JSON does: one beyond the first 65536 as a surrogate pair. */
function unicodeEscape(character: string): string {
  return character.split("")
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .join("");
}

function shortened(name: string): string {
  if (name.length <= MAX_NAME) return name;
  return `${name.slice(0, MAX_NAME).replace(/[\ud800-\udbff]$/, "")}…`;
}
