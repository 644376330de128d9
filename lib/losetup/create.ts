/** Attaches a file like losetup, but without damage after a failure. */
import { LOOP_INFO64_OFFSETS } from "../sys/layouts.ts";
import { isBlockDevice, S_IFDIR, S_IFMT, statAt } from "../sys/stat.ts";
import { bindFirstFree } from "../attaching/allocation.ts";
import { checkBytes, MAX_MINOR } from "../arguments.ts";
import { Backing } from "../attaching/backing.ts";
import { checkBlockSize } from "../kernel/block_size.ts";
import { urlOf } from "../sys/process_arguments.ts";
import { bindOrClose, completeBinding } from "../attaching/binding.ts";
import { LoopError, quote, UnexpectedDevice } from "../errors.ts";
import { openFile } from "../kernel/file_descriptor.ts";
import { Loop } from "../kernel/loop.ts";
import { LoopControl } from "../kernel/loop_control.ts";
import { isBound, rdevOf } from "../kernel/loop_sysfs.ts";
import {
  EACCES,
  EBUSY,
  EEXIST,
  EINVAL,
  EISDIR,
  ENOENT,
  ENOTTY,
  EOVERFLOW,
  EROFS,
} from "../sys/errno.ts";
import { AT_FDCWD, O_ACCMODE, O_RDONLY, openFlags } from "../sys/libc.ts";
import {
  LO_FLAGS_DIRECT_IO,
  LO_FLAGS_READ_ONLY,
  LO_NAME_SIZE,
  LoopConfig,
  type LoopInfo64,
} from "../sys/loop_uapi.ts";
import type { Wanted } from "../attaching/device_size.ts";
import { pollUntil } from "../waiting.ts";
import { type ByteString, toBytes, toCString, toText } from "./byte_string.ts";
import { isLoopNode, openNode } from "./device.ts";
import { Failure, systemFailure } from "./failure.ts";
import { findNodeWithoutControl } from "./find.ts";
import { findOverlap } from "./listing.ts";
import { canonicalPath } from "./paths.ts";
import type { Request } from "./request.ts";

/** A {@linkcode Request} with a file to attach. */
export type CreateRequest = Request & { readonly file: ByteString };

/** Attaches the file and returns the path of the device. */
export async function create(request: CreateRequest): Promise<ByteString> {
  const { device, file, nooverlap } = request;
  if (device === undefined) {
    const used = nooverlap ? reuse(request) : undefined;
    return used ?? await attachAnywhere(request);
  }
  const isAdded = addDevice(device);
  if (nooverlap && overlapping(request) !== undefined) {
    throw new Failure(`${file}: overlapping loop device exists`);
  }
  await attachTo(device, request, isAdded);
  return device;
}

/** Returns a warning if the device does not show the tail of the file. */
export function sizeWarning(
  { file, offset = 0n, sizelimit = 0n }: CreateRequest,
): string | undefined {
  let size = sizelimit;
  if (size === 0n) {
    const stat = statAt(AT_FDCWD, toCString(file));
    if (typeof stat === "number" || isBlockDevice(stat)) return;
    // An offset past the end wraps around, and therefore rarely causes a warning.
    size = BigInt.asUintN(64, stat.size - offset);
  }
  if (size < 512n) {
    return `${file}: Warning: file is smaller than 512 bytes; the loop device may be useless or invisible for system tools.`;
  }
  if (size % 512n !== 0n) {
    return `${file}: Warning: file does not fit into a 512-byte sector; the end of the file will be ignored.`;
  }
}

function overlapping(
  { file, offset = 0n, sizelimit = 0n }: CreateRequest,
): ReturnType<typeof findOverlap> {
  return findOverlap(file, offset, sizelimit);
}

/**
 * Returns the device that already shows exactly these bytes, if any, and clears its
 * autoclear.
 */
function reuse(request: CreateRequest): ByteString | undefined {
  const { file, readOnly } = request;
  const found = overlapping(request);
  if (found === undefined) return undefined;
  const { device, isEqual } = found;
  if (!isEqual) throw new Failure(`${file}: overlapping loop device exists`);
  if (device.readOnly && !readOnly) {
    throw new Failure(`${file}: overlapping read-only loop device exists`);
  }
  try {
    using loop = openNode(device.path, true);
    // It may have been attached again since it was found.
    if (!isBoundAs(loop, device.info)) return reuse(request);
    loop.setStatus({ autoclear: false });
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    throw new Failure(`${file}: failed to re-use loop device`);
  }
  return device.path;
}

/** Returns `true` if an open device still shows the same bytes of the same file. */
function isBoundAs(loop: Loop, known: LoopInfo64 | undefined): boolean {
  const info = loop.getInfo();
  return known !== undefined && info.device === known.device &&
    info.inode === known.inode && info.offset === known.offset &&
    info.sizelimit === known.sizelimit;
}

const CANONICAL_NAME = /\/loop(0|[1-9]\d{0,6})$/;

/**
 * Adds the device of a name like `/dev/loop7` if it does not exist. Returns `true` if
 * its node may take a moment to appear.
 */
function addDevice(path: ByteString): boolean {
  const digits = CANONICAL_NAME.exec(path)?.[1];
  const minor = Number(digits);
  if (digits === undefined || minor > MAX_MINOR) return false;
  if (rdevOf(minor) !== undefined) return false;
  try {
    using control = new LoopControl();
    control.add(minor);
    return true;
  } catch (error) {
    if (error instanceof LoopError) return error.errno === EEXIST;
    throw error;
  }
}

/** Attaches to the device that was named. */
async function attachTo(
  device: ByteString,
  request: CreateRequest,
  isAdded: boolean,
): Promise<void> {
  const open = () => openNode(device, request.readOnly);
  try {
    if (isAdded) await waitForNode(open);
    using backing = openBacking(request);
    const openReady = (readOnly: boolean) => openNode(device, readOnly);
    using loop = bindFile(backing, request, openReady);
    await completeBinding(loop, wantedOf(backing, request));
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    const failed = "failed to set up loop device";
    const blame = errorOf(open);
    if (blame !== undefined && !isOtherFile(blame, device)) {
      throw systemFailure(`${device}: ${failed}`, openErrno(blame));
    }
    const errno = error instanceof UnexpectedDevice ? ENOTTY : error.errno;
    throw systemFailure(`${request.file}: ${failed}`, errno);
  }
}

function errorOf(open: () => Loop): LoopError | undefined {
  try {
    open().close();
    return undefined;
  } catch (error) {
    if (error instanceof LoopError) return error;
    throw error;
  }
}

/**
 * Returns `true` if the path is an openable file that does not support the ioctls of a
 * loop device.
 */
function isOtherFile(error: LoopError, device: ByteString): boolean {
  return error instanceof UnexpectedDevice && !isLoopNode(device) &&
    openErrno(error) !== EISDIR;
}

function openErrno(error: LoopError): number {
  const isDirectory = error instanceof UnexpectedDevice &&
    (error.mode & S_IFMT) === S_IFDIR;
  return isDirectory ? EISDIR : error.errno;
}

const NODE_TIMEOUT = 400; // milliseconds

/**
 * Waits for the node of a device that was added, which appears and gets its owner a
 * moment later.
 */
async function waitForNode(open: () => Loop): Promise<void> {
  await pollUntil(() => {
    const error = errorOf(open);
    return error?.errno !== ENOENT && error?.errno !== EACCES;
  }, { timeout: NODE_TIMEOUT, signal: undefined });
}

/** Attaches to the first device that can be bound. */
async function attachAnywhere(request: CreateRequest): Promise<ByteString> {
  try {
    using backing = openBacking(request);
    const free = findNodeWithoutControl();
    if (free === undefined) {
      const tryDevice = (minor: number) =>
        bindFile(
          backing,
          request,
          (readOnly) => new Loop(minor, { readOnly }),
        );
      using loop = await bindFirstFree(tryDevice, backing.name, undefined);
      await completeBinding(loop, wantedOf(backing, request));
      return loop.path;
    }
    const openFree = (readOnly: boolean) => openNode(free, readOnly);
    using loop = bindFile(backing, request, openFree);
    await completeBinding(loop, wantedOf(backing, request));
    return free;
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    throw systemFailure(
      `${request.file}: failed to set up loop device`,
      error.errno,
    );
  }
}

/** Opens the file, for reading only if it cannot be opened for writing. */
function openBacking({ file, readOnly, directIo }: CreateRequest): Backing {
  if (file === "") throw refusal(ENOENT);
  const open = (readOnly: boolean): Backing => {
    const descriptor = openFile(urlOf(toBytes(file)), { readOnly, directIo });
    try {
      return new Backing(descriptor.fd, quote(toText(file)), descriptor);
    } catch (error) {
      descriptor.close();
      throw error;
    }
  };
  try {
    return open(readOnly);
  } catch (error) {
    const isProtected = error instanceof LoopError &&
      (error.errno === EROFS || error.errno === EACCES);
    if (readOnly || !isProtected) throw error;
    return open(true);
  }
}

/** Binds the file to a device. */
function bindFile(
  backing: Backing,
  request: CreateRequest,
  open: (readOnly: boolean) => Loop,
): Loop {
  const readOnly = isReadOnly(backing);
  const loop = open(readOnly);
  try {
    if (isBound(loop.minor)) throw refusal(EBUSY);
    return bindOrClose(loop, wantedOf(backing, request));
  } catch (error) {
    loop.close();
    throw error;
  }
}

/** Returns the requested configuration of the device. */
function wantedOf(backing: Backing, request: CreateRequest): Wanted {
  const readOnly = isReadOnly(backing);
  const config = encode(backing, request, readOnly);
  const options = {
    readOnly,
    partscan: request.partscan || undefined,
    directIo: request.directIo || undefined,
    blockSize: config.blockSize || undefined,
  };
  return { options, config, backing };
}

function isReadOnly(backing: Backing): boolean {
  return (openFlags(backing.fd) & O_ACCMODE) === O_RDONLY;
}

function encode(
  backing: Backing,
  { file, offset, sizelimit, blockSize, directIo, reference }: CreateRequest,
  readOnly: boolean,
): LoopConfig {
  const config = new LoopConfig();
  config.fd = backing.fd;
  // LOOP_CONFIGURE fails for these only after it has changed the device.
  const bytes = (size = 0n) => orErrno(EOVERFLOW, () => checkBytes(size, ""));
  config.info.offset = bytes(offset);
  config.info.sizelimit = bytes(sizelimit);
  if (blockSize) {
    config.blockSize = orErrno(EINVAL, () => checkBlockSize(Number(blockSize)));
  }
  config.info.flags = (readOnly ? LO_FLAGS_READ_ONLY : 0) |
    (directIo ? LO_FLAGS_DIRECT_IO : 0);
  const text = toBytes(reference ?? canonicalPath(file));
  config.info.bytes.set(
    text.subarray(0, LO_NAME_SIZE - 1),
    LOOP_INFO64_OFFSETS.fileName,
  );
  return config;
}

function orErrno<T>(errno: number, check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (error instanceof RangeError) throw refusal(errno);
    throw error;
  }
}

function refusal(errno: number): LoopError {
  return new LoopError("Cannot attach", { errno, operation: "LOOP_CONFIGURE" });
}
