/**
 * Constants and structures of `<linux/loop.h>`.
 *
 * The numbers are plain constants, and the layouts are identical on every 64-bit
 * architecture.
 */
import {
  LOOP_CONFIG_OFFSETS,
  LOOP_CONFIG_SIZE,
  LOOP_INFO64_OFFSETS,
  LOOP_INFO64_SIZE,
} from "./layouts.ts";

/** `LOOP_SET_FD`, `linux/loop.h`: binds a backing file. */
export const LOOP_SET_FD = 0x4c00;
/** `LOOP_CLR_FD`, `linux/loop.h`: marks the device for clearing. */
export const LOOP_CLR_FD = 0x4c01;
/**
 * `LOOP_SET_STATUS`, `linux/loop.h`: the 32-bit form of {@linkcode LOOP_SET_STATUS64},
 * which replaces it.
 */
export const LOOP_SET_STATUS = 0x4c02;
/**
 * `LOOP_GET_STATUS`, `linux/loop.h`: the 32-bit form of {@linkcode LOOP_GET_STATUS64},
 * which replaces it.
 */
export const LOOP_GET_STATUS = 0x4c03;
/** `LOOP_SET_STATUS64`, `linux/loop.h`: writes a `struct loop_info64`. */
export const LOOP_SET_STATUS64 = 0x4c04;
/** `LOOP_GET_STATUS64`, `linux/loop.h`: reads a `struct loop_info64`. */
export const LOOP_GET_STATUS64 = 0x4c05;
/** `LOOP_CHANGE_FD`, `linux/loop.h`: exchanges the backing file of a read-only device. */
export const LOOP_CHANGE_FD = 0x4c06;
/**
 * `LOOP_SET_CAPACITY`, `linux/loop.h`: resizes the device to the current size of its
 * backing file.
 */
export const LOOP_SET_CAPACITY = 0x4c07;
/** `LOOP_SET_DIRECT_IO`, `linux/loop.h`, Linux 4.4: turns direct I/O on or off. */
export const LOOP_SET_DIRECT_IO = 0x4c08;
/** `LOOP_SET_BLOCK_SIZE`, `linux/loop.h`, Linux 4.14: sets the logical block size. */
export const LOOP_SET_BLOCK_SIZE = 0x4c09;
/** `LOOP_CONFIGURE`, `linux/loop.h`, Linux 5.8: binds and configures in one step. */
export const LOOP_CONFIGURE = 0x4c0a;

/** `LOOP_CTL_ADD`, `linux/loop.h`, Linux 3.1: adds a device. */
export const LOOP_CTL_ADD = 0x4c80;
/** `LOOP_CTL_REMOVE`, `linux/loop.h`, Linux 3.1: removes an unbound device. */
export const LOOP_CTL_REMOVE = 0x4c81;
/** `LOOP_CTL_GET_FREE`, `linux/loop.h`, Linux 3.1: finds or adds an unbound device. */
export const LOOP_CTL_GET_FREE = 0x4c82;

/** `LO_FLAGS_READ_ONLY`, `linux/loop.h`: makes the device read-only. */
export const LO_FLAGS_READ_ONLY = 1;
/** `LO_FLAGS_AUTOCLEAR`, `linux/loop.h`: detaches the device at its last close. */
export const LO_FLAGS_AUTOCLEAR = 4;
/** `LO_FLAGS_PARTSCAN`, `linux/loop.h`: scans the device for partitions. */
export const LO_FLAGS_PARTSCAN = 8;
/** `LO_FLAGS_DIRECT_IO`, `linux/loop.h`: bypasses the page cache of the backing file. */
export const LO_FLAGS_DIRECT_IO = 16;

/** `LO_NAME_SIZE`, the terminating NUL included. */
export const LO_NAME_SIZE = 64;
/** `LO_KEY_SIZE`. */
export const LO_KEY_SIZE = 32;

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const info = LOOP_INFO64_OFFSETS;
const config = LOOP_CONFIG_OFFSETS;

function own(bytes: Uint8Array | undefined, size: number): Uint8Array {
  if (bytes === undefined) return new Uint8Array(size);
  if (!(bytes instanceof Uint8Array)) {
    throw new TypeError(
      "Cannot read the structure: bytes must be a Uint8Array",
    );
  }
  if (bytes.length !== size) {
    throw new RangeError(
      `Cannot read the structure: it has ${size} bytes, got ${bytes.length}`,
    );
  }
  return bytes;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function u32(value: number, field: string): number {
  if (typeof value !== "number") {
    throw new TypeError(`Cannot set ${field}: it must be a number`);
  }
  if (!Number.isInteger(value) || value < 0 || value > 0xffffffff) {
    throw new RangeError(
      `Cannot set ${field} to ${value}: it must fit in 32 bits, unsigned`,
    );
  }
  return value;
}

function u64(value: bigint, field: string): bigint {
  if (typeof value !== "bigint") {
    throw new TypeError(`Cannot set ${field}: it must be a bigint`);
  }
  if (value < 0n || value >= 1n << 64n) {
    throw new RangeError(
      `Cannot set ${field} to ${value}: it must fit in 64 bits, unsigned`,
    );
  }
  return value;
}

/**
 * `struct loop_info64` of `linux/loop.h`: 232 bytes, with accessors for every field.
 *
 * {@linkcode Loop.getInfo} returns one. The fields are views: setting one changes
 * {@linkcode LoopInfo64.bytes} and nothing else. Sizes and offsets are in bytes.
 *
 * @example Read and write fields
 * ```ts
 * import { LoopInfo64 } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const info = new LoopInfo64();
 * info.offset = 1048576n;
 * assertEquals(info.bytes[26], 16);
 * ```
 */
export class LoopInfo64 {
  /** The bytes of the structure, 232 of them. */
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  /**
   * Creates a view of `bytes`, or a structure of zeros if they are not given.
   *
   * @param bytes The 232 bytes of the structure. Setting a field changes this array.
   * @throws {RangeError} If the array has another length.
   */
  constructor(bytes?: Uint8Array) {
    this.bytes = own(bytes, LOOP_INFO64_SIZE);
    this.#view = view(this.bytes);
  }

  /** `lo_device`: the device number of the file system that holds the backing file, as in `st_dev`. Set by the kernel. */
  get device(): bigint {
    return this.#get64(info.device);
  }
  set device(value: bigint) {
    this.#set64(info.device, value, "device");
  }

  /** `lo_inode`: the inode number of the backing file. Set by the kernel. */
  get inode(): bigint {
    return this.#get64(info.inode);
  }
  set inode(value: bigint) {
    this.#set64(info.inode, value, "inode");
  }

  /**
   * `lo_rdevice`: the device number of a backing block device; 0 for a regular file.
   * Set by the kernel.
   */
  get rdevice(): bigint {
    return this.#get64(info.rdevice);
  }
  set rdevice(value: bigint) {
    this.#set64(info.rdevice, value, "rdevice");
  }

  /** `lo_offset`: the offset in the backing file at which the device starts, in bytes. */
  get offset(): bigint {
    return this.#get64(info.offset);
  }
  set offset(value: bigint) {
    this.#set64(info.offset, value, "offset");
  }

  /** `lo_sizelimit`: the maximum size of the device in bytes; 0 means no limit. */
  get sizelimit(): bigint {
    return this.#get64(info.sizelimit);
  }
  set sizelimit(value: bigint) {
    this.#set64(info.sizelimit, value, "sizelimit");
  }

  /** `lo_number`: the number of the device. Set by the kernel. */
  get number(): number {
    return this.#get32(info.number);
  }
  set number(value: number) {
    this.#set32(info.number, value, "number");
  }

  /** `lo_encrypt_type`: 0. Encryption was removed in Linux 5.16. */
  get encryptType(): number {
    return this.#get32(info.encryptType);
  }
  set encryptType(value: number) {
    this.#set32(info.encryptType, value, "encryptType");
  }

  /** `lo_encrypt_key_size`: unused since Linux 5.16. */
  get encryptKeySize(): number {
    return this.#get32(info.encryptKeySize);
  }
  set encryptKeySize(value: number) {
    this.#set32(info.encryptKeySize, value, "encryptKeySize");
  }

  /** `lo_flags`: the `LO_FLAGS_*` combined. */
  get flags(): number {
    return this.#get32(info.flags);
  }
  set flags(value: number) {
    this.#set32(info.flags, value, "flags");
  }

  /**
   * `lo_file_name`: the reference, a text of up to 63 bytes of UTF-8 that the kernel
   * only stores. Bytes that are not UTF-8 read as U+FFFD; `bytes` contains them
   * exactly.
   */
  get fileName(): string {
    return this.#getName(info.fileName);
  }
  set fileName(value: string) {
    this.#setName(info.fileName, value, "fileName");
  }

  /** `lo_crypt_name`: unused since Linux 5.16. */
  get cryptName(): string {
    return this.#getName(info.cryptName);
  }
  set cryptName(value: string) {
    this.#setName(info.cryptName, value, "cryptName");
  }

  /** `lo_encrypt_key`: a copy of 32 bytes, unused since Linux 5.16. */
  get encryptKey(): Uint8Array {
    return this.bytes.slice(info.encryptKey, info.encryptKey + LO_KEY_SIZE);
  }
  set encryptKey(value: Uint8Array) {
    this.bytes.set(own(value, LO_KEY_SIZE), info.encryptKey);
  }

  /** `lo_init`: two unused numbers. */
  get init(): [bigint, bigint] {
    return [this.#get64(info.init), this.#get64(info.init + 8)];
  }
  set init(value: [bigint, bigint]) {
    this.#set64(info.init, value[0], "init[0]");
    this.#set64(info.init + 8, value[1], "init[1]");
  }

  #get32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }

  #set32(offset: number, value: number, field: string): void {
    this.#view.setUint32(offset, u32(value, field), true);
  }

  #get64(offset: number): bigint {
    return this.#view.getBigUint64(offset, true);
  }

  #set64(offset: number, value: bigint, field: string): void {
    this.#view.setBigUint64(offset, u64(value, field), true);
  }

  #getName(offset: number): string {
    if (this.bytes[offset] === 0) return ""; // the common case
    const name = this.bytes.subarray(offset, offset + LO_NAME_SIZE);
    const end = name.indexOf(0);
    return decoder.decode(end < 0 ? name : name.subarray(0, end));
  }

  #setName(offset: number, value: string, field: string): void {
    const name = encodeName(value, field);
    this.bytes.fill(0, offset, offset + LO_NAME_SIZE);
    this.bytes.set(name, offset);
  }
}

/**
 * Encodes a name field: up to 63 bytes of UTF-8 without a NUL. Throws a `RangeError`
 * rather than truncate.
 */
export function encodeName(value: string, field: string): Uint8Array {
  if (typeof value !== "string") {
    throw new TypeError(`Cannot set ${field}: it must be a string`);
  }
  if (value.includes("\0") || !value.isWellFormed()) {
    throw new RangeError(
      `Cannot set ${field} to ${
        JSON.stringify(value)
      }: it must be valid Unicode without NUL`,
    );
  }
  const name = encoder.encode(value);
  if (name.length >= LO_NAME_SIZE) {
    throw new RangeError(
      `Cannot set ${field} to ${JSON.stringify(value)}: it must have at most ${
        LO_NAME_SIZE - 1
      } bytes of UTF-8, got ${name.length}`,
    );
  }
  return name;
}

/**
 * `struct loop_config` of `linux/loop.h` (Linux 5.8), the argument of `LOOP_CONFIGURE`:
 * 304 bytes.
 *
 * @example Fill in the structure for a read-only device
 * ```ts
 * import { LO_FLAGS_READ_ONLY, LoopConfig } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const config = new LoopConfig();
 * config.blockSize = 4096;
 * config.info.flags = LO_FLAGS_READ_ONLY;
 * assertEquals(config.bytes[60], 1);
 * ```
 */
export class LoopConfig {
  /** The bytes of the structure, 304 of them. */
  readonly bytes: Uint8Array;
  /** `info`: the `struct loop_info64` inside. A view of the same bytes. */
  readonly info: LoopInfo64;
  readonly #view: DataView;

  /**
   * Creates a view of `bytes`, or a structure of zeros if they are not given.
   *
   * @param bytes The 304 bytes of the structure. Setting a field changes this array.
   * @throws {RangeError} If the array has another length.
   */
  constructor(bytes?: Uint8Array) {
    this.bytes = own(bytes, LOOP_CONFIG_SIZE);
    this.#view = view(this.bytes);
    this.info = new LoopInfo64(
      this.bytes.subarray(config.info, config.info + LOOP_INFO64_SIZE),
    );
  }

  /** `fd`: the descriptor of the backing file. */
  get fd(): number {
    return this.#view.getUint32(config.fd, true);
  }
  set fd(value: number) {
    this.#view.setUint32(config.fd, u32(value, "fd"), true);
  }

  /** `block_size`: the logical block size in bytes; 0 means the default. */
  get blockSize(): number {
    return this.#view.getUint32(config.blockSize, true);
  }
  set blockSize(value: number) {
    this.#view.setUint32(config.blockSize, u32(value, "blockSize"), true);
  }
}
