/**
 * Full, safe control of Linux loop devices (`/dev/loopN`): files that act as block
 * devices.
 *
 * Most programs need {@linkcode attach} and {@linkcode detach}. {@linkcode list} and
 * {@linkcode find} report what is attached and change nothing. {@linkcode mount} mounts
 * the file system of an image, device or partition. {@linkcode Loop} and
 * {@linkcode LoopControl} are the low-level layer: one method for each ioctl of
 * `linux/loop.h`.
 *
 * Functions that only ask the kernel are synchronous: `Loop`, `LoopControl`, `list`,
 * `find`, `inspect` and the functions that open files. Functions that wait for other
 * processes, write back data or take long are asynchronous and do not block the event
 * loop.
 *
 * Requires Deno 2.5.7 or later, Linux 5.10 or later, x86_64 or aarch64, glibc, and
 * `--allow-ffi` (or `--allow-ffi=<absolute path of libc>`). Importing works on every
 * platform and never prompts. Tests ran on Linux 5.10, 6.1, 6.12, 6.18 and 7.2 on x86_64,
 * and on 6.12 and 7.2 on aarch64 with pages of 4 and 16 KiB. Nothing was run with musl or
 * pages of 64 KiB.
 *
 * @example Attach an image for the length of a block
 * ```ts
 * import { attach, openMemory } from "@loopdev/loopdev";
 *
 * using image = openMemory(16 * 1024 * 1024); // or a path: attach("disk.img")
 * await using device = await attach(image);
 * console.log(device.path, device.size);
 * ```
 *
 * @module
 */
export type {
  ConfigureOptions,
  StatusChanges,
} from "./lib/kernel/configuration.ts";
export { attach, type AttachOptions, type Overlap } from "./lib/attach.ts";
export { attachAll, type AttachmentGroup } from "./lib/attach.ts";
export { Attachment } from "./lib/attachment.ts";
export { detach, type DetachOptions } from "./lib/detach.ts";
export type { DeviceRef } from "./lib/device_ref.ts";
export {
  find,
  type FindOptions,
  inspect,
  list,
  type ListFilter,
  type LoopDevice,
} from "./lib/devices.ts";
export { type Check, doctor } from "./lib/doctor.ts";
export {
  LoopBusyError,
  LoopError,
  type LoopErrorDetails,
  StaleDeviceError,
  UnexpectedDevice,
} from "./lib/errors.ts";
export {
  FileDescriptor,
  openDirectory,
  openFile,
  type OpenFileOptions,
  openMemory,
} from "./lib/kernel/file_descriptor.ts";
export type { Holder } from "./lib/holder.ts";
export { describeHolder } from "./lib/describe_holder.ts";
export { type Holders, holders } from "./lib/holders.ts";
export {
  Loop,
  type LoopOpenOptions,
  type LoopOptions,
  type LoopStatus,
  type MknodOptions,
} from "./lib/kernel/loop.ts";
export {
  LoopControl,
  type LoopControlOptions,
} from "./lib/kernel/loop_control.ts";
export { Mount, mount, type MountOptions } from "./lib/mount.ts";
export type { FileSystem } from "./lib/mounting/recognize.ts";
export type { Partition } from "./lib/partitions/partition.ts";
export {
  partitions,
  type PartitionsOptions,
} from "./lib/partitions/partitions.ts";
export {
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_DIRECT_IO,
  LO_FLAGS_PARTSCAN,
  LO_FLAGS_READ_ONLY,
  LOOP_CHANGE_FD,
  LOOP_CLR_FD,
  LOOP_CONFIGURE,
  LOOP_CTL_ADD,
  LOOP_CTL_GET_FREE,
  LOOP_CTL_REMOVE,
  LOOP_GET_STATUS,
  LOOP_GET_STATUS64,
  LOOP_SET_BLOCK_SIZE,
  LOOP_SET_CAPACITY,
  LOOP_SET_DIRECT_IO,
  LOOP_SET_FD,
  LOOP_SET_STATUS,
  LOOP_SET_STATUS64,
  LoopConfig,
  LoopInfo64,
} from "./lib/sys/loop_uapi.ts";
