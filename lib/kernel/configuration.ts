/** What can be set of a device, checked and encoded into the structures of the kernel. */
import { checkBoolean, checkBytes } from "../arguments.ts";
import {
  encodeName,
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_DIRECT_IO,
  LO_FLAGS_PARTSCAN,
  LO_FLAGS_READ_ONLY,
  LoopConfig,
} from "../sys/loop_uapi.ts";
import { checkBlockSize } from "./block_size.ts";

/** What {@linkcode Loop.configure} sets. Sizes and offsets are bytes. */
export interface ConfigureOptions {
  /**
   * Where in the backing file the device begins.
   *
   * @default {0}
   */
  offset?: number | bigint | undefined;
  /**
   * How large the device is at most. The device is as large as the smaller of this
   * and what the file holds behind the offset; 0 means no limit.
   *
   * @default {0}
   */
  sizelimit?: number | bigint | undefined;
  /** The logical block size: a power of two from 512 to the page size, to 65536 from Linux 6.15 on. Without it the kernel chooses. */
  blockSize?: number | undefined;
  /**
   * Nobody can write through the device.
   *
   * @default {false}
   */
  readOnly?: boolean | undefined;
  /** The kernel detaches at the last close, also when the process is killed. */
  autoclear?: boolean | undefined;
  /** The kernel looks for partitions. */
  partscan?: boolean | undefined;
  /** Bypass the page cache of the backing file. A wish: the kernel drops it in silence where it cannot. */
  directIo?: boolean | undefined;
  /** A text of at most 63 bytes of UTF-8 that the kernel keeps with the device (`lo_file_name`). */
  reference?: string | undefined;
}

/** What {@linkcode Loop.setStatus} changes. What is absent or `undefined` stays as it is. */
export interface StatusChanges {
  /** Where in the backing file the device begins, in bytes. */
  offset?: number | bigint | undefined;
  /** How many bytes the device has at most; 0 means no limit. */
  sizelimit?: number | bigint | undefined;
  /** Whether the kernel detaches at the last close. */
  autoclear?: boolean | undefined;
  /** Whether the kernel looks for partitions. It cannot be turned off. */
  partscan?: boolean | undefined;
  /** A text of at most 63 bytes of UTF-8 that the kernel keeps with the device. */
  reference?: string | undefined;
}

/** The options of {@linkcode Loop.configure} by name. */
export const CONFIGURE_OPTIONS = [
  "offset",
  "sizelimit",
  "blockSize",
  "readOnly",
  "autoclear",
  "partscan",
  "directIo",
  "reference",
] as const;

/** The changes of {@linkcode Loop.setStatus} by name. */
export const STATUS_CHANGES = [
  "offset",
  "sizelimit",
  "autoclear",
  "partscan",
  "reference",
] as const;

/** Checks the options and puts them into a `struct loop_config`, all but the descriptor. */
export function encodeOptions(options: ConfigureOptions): LoopConfig {
  const { offset, sizelimit, blockSize, reference } = options;
  const config = new LoopConfig();
  const { info } = config;
  if (offset !== undefined) info.offset = checkBytes(offset, "offset");
  if (sizelimit !== undefined) {
    info.sizelimit = checkBytes(sizelimit, "sizelimit");
  }
  if (blockSize !== undefined) config.blockSize = checkBlockSize(blockSize);
  if (reference !== undefined) {
    encodeName(reference, "reference"); // for the message
    info.fileName = reference;
  }
  const flag = (name: "readOnly" | "autoclear" | "partscan" | "directIo") =>
    checkBoolean(options[name], name) ? FLAGS[name] : 0;
  info.flags = flag("readOnly") | flag("autoclear") | flag("partscan") |
    flag("directIo");
  return config;
}

const FLAGS = {
  readOnly: LO_FLAGS_READ_ONLY,
  autoclear: LO_FLAGS_AUTOCLEAR,
  partscan: LO_FLAGS_PARTSCAN,
  directIo: LO_FLAGS_DIRECT_IO,
};

/** What `lo_flags` says. */
export function decodeFlags(
  flags: number,
): Record<keyof typeof FLAGS, boolean> {
  return {
    readOnly: (flags & LO_FLAGS_READ_ONLY) !== 0,
    autoclear: (flags & LO_FLAGS_AUTOCLEAR) !== 0,
    partscan: (flags & LO_FLAGS_PARTSCAN) !== 0,
    directIo: (flags & LO_FLAGS_DIRECT_IO) !== 0,
  };
}
