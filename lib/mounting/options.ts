/** Validates the options of mounting. */
import {
  checkBoolean,
  checkOptions,
  checkPath,
  checkSignal,
  type FilePath,
} from "../arguments.ts";
import { quote } from "../errors.ts";
import {
  MOUNT_ATTR_NOATIME,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
} from "../sys/mount_calls.ts";

/** Options of {@linkcode mount}. */
export interface MountOptions {
  /**
   * Number of the partition, or its name in a GPT. By default, the file system on the
   * whole device is mounted, or the only one on its partitions.
   */
  partition?: number | string | undefined;
  /** Type of the file system as the kernel names it: `ext4`. By default, the superblock determines it. */
  type?: string | undefined;
  /**
   * Mounts read-only. A file is also attached read-only, so that no journal is replayed.
   *
   * @default {as the device and the file system are}
   */
  readOnly?: boolean | undefined;
  /**
   * Options of the file system: `{ noload: true, subvol: "@" }`. If the device is already
   * mounted, the file system keeps the options of its first mount.
   */
  options?: Record<string, string | true> | undefined;
  /**
   * Ignores the set-user-ID and set-group-ID bits of programs.
   *
   * @default {true}
   */
  noSuid?: boolean | undefined;
  /**
   * Refuses to open device nodes.
   *
   * @default {true}
   */
  noDev?: boolean | undefined;
  /**
   * Refuses to execute programs.
   *
   * @default {false}
   */
  noExec?: boolean | undefined;
  /**
   * Does not update access times.
   *
   * @default {false}
   */
  noAtime?: boolean | undefined;
  /**
   * Directory to mount on. The mount is visible to every process and outlives this one.
   * By default, the mount is private: it is reachable by `path` and ends with this process.
   */
  target?: string | URL | undefined;
  /**
   * Signal used to abort. The promise rejects with its reason. The kernel cannot be
   * interrupted while it reads the superblock.
   */
  signal?: AbortSignal | undefined;
}

/** Validated {@linkcode MountOptions}. */
export interface MountRequest {
  readonly partition: number | string | undefined;
  readonly type: string | undefined;
  readonly readOnly: boolean | undefined;
  readonly options: ReadonlyMap<string, string | true>;
  /** Attributes of `fsmount`. */
  readonly attributes: number;
  readonly target: FilePath | undefined;
  readonly signal: AbortSignal | undefined;
}

const NAMES = [
  "noAtime",
  "noDev",
  "noExec",
  "noSuid",
  "options",
  "partition",
  "readOnly",
  "signal",
  "target",
  "type",
];

/** Validates options, and allows the names in `others`. Throws the reason of an earlier abort. */
export function checkMountOptions(
  options: MountOptions,
  others: readonly string[] = [],
): MountRequest {
  checkOptions(options, [...NAMES, ...others]);
  const attributes = [
    [checkBoolean(options.noSuid, "noSuid") ?? true, MOUNT_ATTR_NOSUID],
    [checkBoolean(options.noDev, "noDev") ?? true, MOUNT_ATTR_NODEV],
    [checkBoolean(options.noExec, "noExec"), MOUNT_ATTR_NOEXEC],
    [checkBoolean(options.noAtime, "noAtime"), MOUNT_ATTR_NOATIME],
  ] as const;
  const request = {
    partition: checkPartition(options.partition),
    type: checkType(options.type),
    readOnly: checkBoolean(options.readOnly, "readOnly"),
    options: checkFileSystemOptions(options.options),
    attributes: attributes.reduce((all, [on, bit]) => on ? all | bit : all, 0),
    target: options.target === undefined
      ? undefined
      : checkPath(options.target),
    signal: checkSignal(options.signal),
  };
  request.signal?.throwIfAborted();
  return request;
}

function checkPartition(value: unknown): number | string | undefined {
  if (value === undefined) return undefined;
  if (typeof value === "number") {
    if (Number.isSafeInteger(value) && value > 0) return value;
    throw new RangeError(
      `Cannot use ${value} as partition: it must be an integer, 1 or more`,
    );
  }
  if (typeof value !== "string") {
    throw new TypeError(
      `Cannot use ${
        String(value)
      } as partition: it must be a number, or a name in a GPT`,
    );
  }
  if (value !== "") return value;
  throw new RangeError("Cannot use an empty name as partition");
}

/** Syntax of names of file systems and of their options. */
const WORD = /^[\w.:-]{1,200}$/;

function checkType(value: unknown): string | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== "string") {
    throw new TypeError(
      `Cannot use ${String(value)} as type: it must be a string`,
    );
  }
  if (WORD.test(value)) return value;
  throw new RangeError(
    `Cannot use ${quote(value)} as type: it must be the name of a file system`,
  );
}

/** Options of the mount and not of the file system, with the replacement for each. */
const OTHERS: Readonly<Record<string, string>> = {
  source: "it is the device",
  ro: "use readOnly",
  rw: "use readOnly",
  suid: "use noSuid",
  nosuid: "use noSuid",
  dev: "use noDev",
  nodev: "use noDev",
  exec: "use noExec",
  noexec: "use noExec",
  atime: "use noAtime",
  noatime: "use noAtime",
};

/** The kernel's limit for a value, in bytes. */
const MAX_VALUE = 255;

function checkFileSystemOptions(
  value: unknown,
): ReadonlyMap<string, string | true> {
  if (value === undefined) return new Map();
  if (!isPlainObject(value)) {
    throw new TypeError(
      "Cannot use options of the file system: they must be an object",
    );
  }
  const checked = new Map<string, string | true>();
  for (const [key, text] of Object.entries(value)) {
    const action = `Cannot use option ${quote(key)} of the file system`;
    if (!WORD.test(key)) throw new RangeError(`${action}: it is no word`);
    const other = Object.hasOwn(OTHERS, key) ? OTHERS[key] : undefined;
    if (other !== undefined) throw new TypeError(`${action}: ${other}`);
    checked.set(key, checkValue(text, action));
  }
  return checked;
}

/** A Map would have no entries here, and its options would be dropped. */
function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

function checkValue(value: unknown, action: string): string | true {
  if (value === true) return true;
  if (typeof value !== "string") {
    throw new TypeError(`${action}: its value must be a string, or true`);
  }
  if (value.includes("\0") || !value.isWellFormed()) {
    throw new TypeError(
      `${action}: its value holds a NUL character, or half a surrogate pair`,
    );
  }
  if (new TextEncoder().encode(value).length <= MAX_VALUE) return value;
  throw new RangeError(`${action}: its value is over ${MAX_VALUE} bytes`);
}
