/** Examines a loop device by its path, like losetup. */
import { LOOP_INFO64_OFFSETS } from "../sys/layouts.ts";
import { isBlockDevice, majorMinor, statAt } from "../sys/stat.ts";
import { LoopError } from "../errors.ts";
import { Loop, openNode as openLoopNode } from "../kernel/loop.ts";
import { AT_FDCWD } from "../sys/libc.ts";
import { LO_NAME_SIZE, type LoopInfo64 } from "../sys/loop_uapi.ts";
import { readBytes } from "../sys/sysfs.ts";
import {
  type ByteString,
  fromBytes,
  toCString,
  toText,
} from "./byte_string.ts";

/** Opens the node of a whole loop device, at any path. */
export function openNode(path: ByteString, readOnly: boolean): Loop {
  const node = { text: toText(path), bytes: toCString(path) };
  return openLoopNode(node, { readOnly });
}

/**
 * Returns `true` if a path leads to the node of a loop device, even if the device does
 * not exist.
 */
export function isLoopNode(path: ByteString): boolean {
  return deviceNumberAt(path) !== undefined;
}

/** Returns the number of the loop device that a node represents. */
function deviceNumberAt(path: ByteString): number | undefined {
  const stat = statAt(AT_FDCWD, toCString(path));
  if (typeof stat === "number") return undefined;
  if (!isBlockDevice(stat)) return undefined;
  return majorMinor(stat.rdev)[0] === Loop.MAJOR ? stat.rdev : undefined;
}

/** Facts about a device. All except its status are read on each access. */
export class Device {
  /** The path by which it is listed. */
  readonly path: ByteString;
  #info: LoopInfo64 | undefined | null = null;

  constructor(path: ByteString) {
    this.path = path;
  }

  /** The device number, as in `st_rdev`. */
  get rdev(): number | undefined {
    return deviceNumberAt(this.path);
  }

  /** Reads an attribute in sysfs, only if the path starts with `/dev/`. */
  #attribute(name: string): ByteString | undefined {
    const number = this.path.startsWith("/dev/") ? this.rdev : undefined;
    if (number === undefined) return undefined;
    const bytes = readBytes(
      `/sys/dev/block/${majorMinor(number).join(":")}/${name}`,
    );
    return typeof bytes === "number" ? undefined : fromBytes(bytes);
  }

  #number(name: string): bigint | undefined {
    const text = this.#attribute(name);
    return text === undefined ? undefined : BigInt(text);
  }

  get backingFile(): ByteString | undefined {
    return this.#attribute("loop/backing_file");
  }

  get offset(): bigint | undefined {
    return this.#number("loop/offset");
  }

  get sizelimit(): bigint | undefined {
    return this.#number("loop/sizelimit");
  }

  get autoclear(): boolean {
    return this.#attribute("loop/autoclear") === "1";
  }

  get directIo(): boolean {
    return this.#attribute("loop/dio") === "1";
  }

  /**
   * `true` if the kernel scans for partitions. Kernels without the attribute are
   * assumed to.
   */
  get partscan(): boolean {
    return (this.#attribute("loop/partscan") ?? "1") === "1";
  }

  get readOnly(): boolean {
    return this.#attribute("ro") === "1";
  }

  get blockSize(): bigint | undefined {
    return this.#number("queue/logical_block_size") ??
      this.#ask((loop) => BigInt(loop.getBlockSize()));
  }

  /** The status, available only to those who may open the device. */
  get info(): LoopInfo64 | undefined {
    if (this.#info === null) this.#info = this.#ask((loop) => loop.getInfo());
    return this.#info;
  }

  /** The number of the file system that holds the file. */
  get backingDevice(): number | undefined {
    return Number(this.info?.device ?? 0) || undefined;
  }

  /**
   * The reference text of the device, which is the path of the file if none was given.
   */
  get reference(): ByteString | undefined {
    const { fileName } = LOOP_INFO64_OFFSETS;
    const bytes = this.info?.bytes.subarray(fileName, fileName + LO_NAME_SIZE);
    return bytes && fromBytes(bytes).replace(/\0.*$/s, "");
  }

  #ask<T>(question: (loop: Loop) => T): T | undefined {
    try {
      using loop = openNode(this.path, true);
      return question(loop);
    } catch (error) {
      if (error instanceof LoopError) return undefined;
      throw error;
    }
  }
}
