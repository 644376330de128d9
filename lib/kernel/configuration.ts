/**
 * Validates the properties of a device and encodes them into the structures of the
 * kernel.
 */
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

/** Options of {@linkcode Loop.configure}. Sizes and offsets are in bytes. */
export interface ConfigureOptions {
  /**
   * The offset in the backing file at which the device starts.
   *
   * @default {0}
   */
  offset?: number | bigint | undefined;
  /**
   * The maximum size of the device; 0 means no limit. The device is as large as this or
   * as the part of the file after the offset, whichever is smaller.
   *
   * @default {0}
   */
  sizelimit?: number | bigint | undefined;
  /**
   * The logical block size: a power of two from 512 to the page size, or to 65536 from
   * Linux 6.15 on. By default, the kernel chooses.
   */
  blockSize?: number | undefined;
  /**
   * Makes the device read-only.
   *
   * @default {false}
   */
  readOnly?: boolean | undefined;
  /** Detaches the device at its last close, even if the process is killed. */
  autoclear?: boolean | undefined;
  /** Scans the device for partitions. */
  partscan?: boolean | undefined;
  /**
   * Bypasses the page cache of the backing file. This is a request: the kernel silently
   * ignores it if it is not possible.
   */
  directIo?: boolean | undefined;
  /**
   * A text of up to 63 bytes of UTF-8 that the kernel stores with the device
   * (`lo_file_name`).
   */
  reference?: string | undefined;
}

/**
 * Changes that {@linkcode Loop.setStatus} makes. Fields that are absent or `undefined`
 * keep their value.
 */
export interface StatusChanges {
  /** The offset in the backing file at which the device starts, in bytes. */
  offset?: number | bigint | undefined;
  /** The maximum size of the device in bytes; 0 means no limit. */
  sizelimit?: number | bigint | undefined;
  /** Detaches the device at its last close. */
  autoclear?: boolean | undefined;
  /** Scans the device for partitions. It cannot be turned off. */
  partscan?: boolean | undefined;
  /** A text of up to 63 bytes of UTF-8 that the kernel stores with the device. */
  reference?: string | undefined;
}

/** Names of the options of {@linkcode Loop.configure}. */
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

/** Names of the changes of {@linkcode Loop.setStatus}. */
export const STATUS_CHANGES = [
  "offset",
  "sizelimit",
  "autoclear",
  "partscan",
  "reference",
] as const;

/**
 * Validates the options and encodes them into a `struct loop_config`, except for the
 * descriptor.
 */
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
    encodeName(reference, "reference"); // for its error message
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

/** Decodes the bits of `lo_flags`. */
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
