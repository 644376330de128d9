/** The errors of this library. */
import type { Holder } from "./holder.ts";
import { ENODEV, errnoMessage, errnoName, ESTALE } from "./sys/errno.ts";

/** What went wrong, beside what was tried. */
export interface LoopErrorDetails {
  /** The error number of the kernel, positive. */
  errno: number;
  /** The call that failed: `LOOP_SET_FD`, `open`. */
  operation: string;
  /** The file or device that it failed on, when there is one. */
  path?: string | undefined;
  /** What can be done about it, or what it means here. */
  hint?: string | undefined;
  /** Another error that this one must not hide. */
  cause?: unknown;
}

/**
 * The kernel refused something.
 *
 * The message says what was tried, on what, what the kernel said, and where there
 * is one thing to do about it, that.
 *
 * @example Telling a missing file from other failures
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
  /** The file or device that it failed on, when there is one. */
  readonly path?: string;

  /**
   * An error whose message begins with `action`: `Cannot attach "disk.img"`.
   *
   * @param action What was tried, on what.
   * @param details What the kernel said.
   */
  constructor(action: string, details: LoopErrorDetails) {
    const { errno, operation, path, hint, cause } = details;
    const code = errnoName(errno);
    // Names are quoted where they are put in; what was not is escaped here.
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
 * A device did not become free in time: somebody else has it open.
 *
 * The kernel frees it when they let go; nothing has to be repeated, but for a mount on a
 * target, which stays. {@linkcode detach}, {@linkcode Attachment.detach},
 * {@linkcode Mount.unmount} and {@linkcode partitions} throw it. A write-back error is its
 * `cause`.
 *
 * @example Who is in the way
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
  /** Who keeps it busy, as far as that can be seen. */
  readonly holders: Holder[];

  /**
   * An error with the holders that were found.
   *
   * @param action What was tried, on what.
   * @param details What the kernel said, and the holders.
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
 * A device is bound to something else than it was when its disk sequence number
 * was read: the number was recycled. Nothing was changed. `ESTALE`.
 */
export class StaleDeviceError extends LoopError {
  /** The name of the class. */
  override readonly name: string = "StaleDeviceError";

  /**
   * An error about the device at `path`.
   *
   * @param action What was tried.
   * @param path The path of the device.
   * @param hint What it is now.
   */
  constructor(action: string, path: string, hint: string) {
    super(action, { errno: ESTALE, operation: "BLKGETDISKSEQ", path, hint });
  }
}

/**
 * A node is not what its name says: no block device, or another device than the
 * one of that number. It was not opened. `ENODEV`.
 */
export class UnexpectedDevice extends LoopError {
  /** The name of the class. */
  override readonly name: string = "UnexpectedDevice";
  /** The loop number that was expected; -1 when any loop device would have done. */
  readonly expectedMinor: number;
  /** The device number of the node, encoded as in `st_rdev`; 0 when it is no device. */
  readonly rdev: number;
  /** Type and permissions of the node, as in `st_mode`. */
  readonly mode: number;

  /**
   * An error about a node with the given device number and mode.
   *
   * @param expectedMinor The loop number that was expected; -1 for any.
   * @param rdev The device number of the node; 0 when it is no device.
   * @param mode Type and permissions of the node.
   * @param details Its path, and what it should have been.
   */
  constructor(
    expectedMinor: number,
    rdev: number,
    mode: number,
    details: {
      path?: string | undefined;
      hint?: string | undefined;
      /** What the node should have been, when not a loop device. */
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

/** What to say of a call that failed. */
export interface Failure extends Omit<LoopErrorDetails, "errno" | "hint"> {
  /** What was tried, on what: `Cannot open "disk.img"`. */
  action: string;
  /** What it means here, where there is something to say; or that for some error numbers. */
  hint?: string | Record<number, string> | undefined;
}

/** The result of a system call; a negative one, which is an error number, is thrown as `LoopError`. */
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
 * Characters that a terminal acts on instead of showing them, by their categories:
 * controls, formats (direction, no width, tags), ends of lines, and halves of pairs.
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

/** Longer names are cut off in messages: others choose them. */
const MAX_NAME = 200;

/**
 * Escapes what a terminal would act on: others may have chosen the text. Escaping it
 * twice is the same as once.
 */
export function escapeControls(text: string): string {
  return replaceUnprintable(text, (control) => {
    const code = control.charCodeAt(0);
    return code < 256
      ? `\\x${code.toString(16).padStart(2, "0")}`
      : unicodeEscape(control);
  });
}

/** A name of others as it stands in messages: on one line, at most 200 characters. */
export function printable(name: string): string {
  return escapeControls(shortened(name));
}

/** A name as it stands in messages: quoted, on one line whatever it holds. */
export function quote(name: string): string {
  return replaceUnprintable(JSON.stringify(shortened(name)), unicodeEscape);
}

/** As in JSON: a character beyond the first 65536 is two of them. */
function unicodeEscape(character: string): string {
  return character.split("")
    .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .join("");
}

function shortened(name: string): string {
  if (name.length <= MAX_NAME) return name;
  return `${name.slice(0, MAX_NAME).replace(/[\ud800-\udbff]$/, "")}…`;
}
