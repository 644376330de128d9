/** Creates detached mounts through file system contexts (`fsopen`, `fsconfig`, `fsmount`). */
import { LoopError, printable, quote } from "../errors.ts";
import { FileDescriptor } from "../kernel/file_descriptor.ts";
import {
  EACCES,
  EBUSY,
  EINVAL,
  ENODEV,
  ENOSYS,
  EPERM,
  EROFS,
} from "../sys/errno.ts";
import { closeAsync } from "../sys/libc.ts";
import {
  fsconfigCreate,
  fsconfigCreateAsync,
  fsconfigSet,
  fsmount,
  fsopen,
  fsopenAsync,
  MOUNT_ATTR_RDONLY,
  read,
} from "../sys/mount_calls.ts";
import { readWhole } from "../sys/sysfs.ts";

/** Parameters of a mount. */
export interface Plan {
  /** Path of the device. */
  readonly source: string;
  readonly type: string;
  readonly readOnly: boolean;
  /** Options of the file system. */
  readonly options: ReadonlyMap<string, string | true>;
  /** Attributes of the mount, without read-only. */
  readonly attributes: number;
  readonly signal: AbortSignal | undefined;
}

/** A mount that lives as long as its descriptor. */
export interface DetachedMount {
  readonly descriptor: FileDescriptor;
  /** Type of the file system, as the kernel names it. */
  readonly type: string;
}

/** Creates a detached mount without blocking the event loop. */
export async function mountDetached(plan: Plan): Promise<DetachedMount> {
  const { fd, type } = await createContext(plan);
  const attributes = plan.attributes |
    (plan.readOnly ? MOUNT_ATTR_RDONLY : 0);
  const mount = fsmount(fd, attributes);
  if (mount < 0) {
    const words = kernelWords(fd);
    await closeAsync(fd); // unmounts the file system
    throw mountError(plan, -mount, "fsmount", words);
  }
  new FileDescriptor(fd).close();
  return { descriptor: new FileDescriptor(mount), type };
}

/**
 * Reads the superblock on another thread, where errno is lost. A call that failed is
 * repeated on this thread to get its error.
 */
async function createContext(
  plan: Plan,
): Promise<{ fd: number; type: string }> {
  for (let tries = 1;; tries++) {
    plan.signal?.throwIfAborted();
    const context = await openContext(plan);
    const { fd, type } = context;
    const start = performance.now();
    if (await fsconfigCreateAsync(fd) >= 0) return context;
    const isQuick = performance.now() - start <= MAX_BLOCKING;
    const words = kernelWords(fd);
    await closeAsync(fd);
    if (isQuick) return await createHere({ ...plan, type }, words);
    // It is quicker once the file system is cached, unless that is hostile. Then the
    // kernel's words have to do.
    if (tries === MAX_TRIES) throw mountError(plan, EINVAL, "fsconfig", words);
  }
}

/** Repeats a call that failed elsewhere, to get its error. */
async function createHere(
  plan: Plan,
  words: readonly string[],
): Promise<{ fd: number; type: string }> {
  const context = await openContext(plan);
  const result = fsconfigCreate(context.fd);
  if (result >= 0) return context;
  const more = kernelWords(context.fd);
  await closeAsync(context.fd);
  throw mountError(plan, -result, "fsconfig", more.length > 0 ? more : words);
}

/** Tries that may be too slow to be repeated on this thread. */
const MAX_TRIES = 3;

/** Time for which a failing call may block the event loop, in milliseconds. */
const MAX_BLOCKING = 25;

/** Kernel names, in order of preference, of types that blkid names differently. */
const KERNEL_NAMES: Readonly<Record<string, readonly string[]>> = {
  ntfs: ["ntfs3", "ntfs"],
  ext2: ["ext2", "ext4"],
  ext3: ["ext3", "ext4"],
};

/** Opens a context and sets all options. */
async function openContext(plan: Plan): Promise<{ fd: number; type: string }> {
  const names = Object.hasOwn(KERNEL_NAMES, plan.type)
    ? KERNEL_NAMES[plan.type]!
    : [plan.type];
  let fd = -ENODEV;
  let type = plan.type;
  for (type of names) {
    fd = await openType(plan, type);
    if (fd !== -ENODEV) break;
  }
  if (fd < 0) throw mountError(plan, -fd, "fsopen", []);
  try {
    set(plan, fd, "source", plan.source);
    if (plan.readOnly) set(plan, fd, "ro", true);
    for (const [key, value] of plan.options) set(plan, fd, key, value);
    return { fd, type };
  } catch (error) {
    new FileDescriptor(fd).close();
    throw error;
  }
}

/**
 * Opens a context, on another thread if the kernel has to load a module. Returns a
 * descriptor, or a negative error number.
 */
async function openType(plan: Plan, type: string): Promise<number> {
  const loaded = loadedTypes();
  if (isWithoutDevice(type, loaded)) throw withoutDevice(plan);
  if (loaded.includes(`\t${type}`)) return fsopen(type);
  const start = performance.now();
  const fd = await fsopenAsync(type);
  const isQuick = performance.now() - start <= MAX_BLOCKING;
  const now = loadedTypes();
  if (fd < 0) {
    // A call that took long has looked for a module in vain, unless the type is there.
    const isUnknown = !isQuick && !now.includes(`\t${type}`);
    return isUnknown ? errorOfUnknown() : fsopen(type);
  }
  if (!isWithoutDevice(type, now)) return fd;
  await closeAsync(fd);
  throw withoutDevice(plan);
}

/** Returns the error of opening a type that the kernel does not know. */
function errorOfUnknown(): number {
  // Without the right to mount, the descriptor is not examined.
  return fsmount(-1, 0) === -EPERM ? -EPERM : -ENODEV;
}

/** Returns the lines of `/proc/filesystems`. */
function loadedTypes(): string[] {
  const list = readWhole("/proc/filesystems");
  return typeof list === "string" ? list.split("\n") : [];
}

/** Returns `true` for a loaded file system without a device, which would ignore the source. */
function isWithoutDevice(type: string, loaded: readonly string[]): boolean {
  const [name] = type.split("."); // "fuse.sshfs" is a "fuse"
  return loaded.includes(`nodev\t${name}`);
}

function withoutDevice(plan: Plan): LoopError {
  return mountError(plan, EINVAL, "fsopen", [
    "it is a file system that has no device",
  ]);
}

function set(
  plan: Plan,
  fd: number,
  key: string,
  value: string | true,
): void {
  const result = fsconfigSet(fd, key, value);
  if (result >= 0) return;
  const words = kernelWords(fd);
  const option = printable(value === true ? key : `${key}=${value}`);
  throw mountError(plan, -result, "fsconfig", [
    ...words,
    ...words.some((line) => line.includes(key)) ? [] : [`option ${option}`],
  ]);
}

/** The kernel's limit of messages of a context. */
const MAX_MESSAGES = 8;
const message = new Uint8Array(4096);

/** Reads the kernel's messages about a context: `ext4: Unknown parameter 'x'`. Omits others if there are errors. */
function kernelWords(fd: number): string[] {
  const decoder = new TextDecoder();
  const lines: string[] = [];
  for (let count = 0; count < MAX_MESSAGES; count++) {
    const size = read(fd, message);
    if (size <= 0) break;
    lines.push(decoder.decode(message.subarray(0, size)).trimEnd());
  }
  const errors = lines.filter((line) => line.startsWith("e "));
  return (errors.length > 0 ? errors : lines)
    .map((line) => printable(line.replace(/^[ewi] /, "")));
}

/** Makes the error for a mount that the kernel refused. */
function mountError(
  plan: Plan,
  errno: number,
  operation: string,
  words: readonly string[],
): LoopError {
  const { source, type } = plan;
  const hint = hintFor(errno, plan, operation);
  const isLast = words.length > 0 && errno !== EROFS && errno !== EACCES;
  return new LoopError(`Cannot mount ${quote(source)} as ${type}`, {
    errno,
    operation,
    path: source,
    hint: [...words, ...hint === undefined || isLast ? [] : [hint]].join("; "),
  });
}

/** Options that mount journaling file systems without replaying the journal. */
const WITHOUT_JOURNAL: Readonly<Record<string, string>> = {
  ext3: "noload",
  ext4: "noload",
  xfs: "norecovery",
  btrfs: "rescue=nologreplay",
  f2fs: "norecovery",
  nilfs2: "norecovery",
};

function hintFor(
  errno: number,
  { type, readOnly }: Plan,
  operation: string,
): string | undefined {
  switch (errno) {
    case EPERM:
      return "mounting needs CAP_SYS_ADMIN: run it as root (in a container: --cap-add SYS_ADMIN)";
    case ENOSYS:
      return "this kernel has no fsopen: mounting needs Linux 5.10 or later";
    case ENODEV:
      return operation === "fsopen"
        ? `this kernel has no file system ${type}`
        : undefined;
    case EBUSY:
      return "it is mounted otherwise already, or held exclusively";
    case EACCES:
      return readOnly
        ? "a security module may forbid it (AppArmor in a container)"
        : "it can only be read: mount it read-only";
    case EROFS: {
      const option = Object.hasOwn(WITHOUT_JOURNAL, type)
        ? WITHOUT_JOURNAL[type]
        : undefined;
      return option === undefined
        ? "it can be mounted read-only"
        : `its journal would have to be replayed, and the device is read-only: option ${option} mounts it as it is`;
    }
    default:
      return "it is damaged, or of another type, or an option is wrong; the kernel log may tell more";
  }
}
