/** A mount that is attached nowhere yet: a file system context, configured and created. */
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

/** What to mount, and how. */
export interface Plan {
  /** The path of the device. */
  readonly source: string;
  readonly type: string;
  readonly readOnly: boolean;
  /** Of the file system. */
  readonly options: ReadonlyMap<string, string | true>;
  /** Of the mount, without read-only. */
  readonly attributes: number;
}

/** A mount that lives as long as its descriptor. */
export interface DetachedMount {
  readonly descriptor: FileDescriptor;
  /** The type by which the kernel knows it. */
  readonly type: string;
}

/** Mounts, and attaches that nowhere. The event loop goes on meanwhile. */
export async function mountDetached(plan: Plan): Promise<DetachedMount> {
  const { fd, type } = await createContext(plan);
  const attributes = plan.attributes |
    (plan.readOnly ? MOUNT_ATTR_RDONLY : 0);
  const mount = fsmount(fd, attributes);
  if (mount < 0) {
    const words = kernelWords(fd);
    await closeAsync(fd); // which unmounts
    throw mountError(plan, -mount, "fsmount", words);
  }
  new FileDescriptor(fd).close();
  return { descriptor: new FileDescriptor(mount), type };
}

/** Reads the superblock on another thread. When that fails it is repeated here, which tells why. */
async function createContext(
  plan: Plan,
): Promise<{ fd: number; type: string }> {
  const context = await openContext(plan);
  const { fd, type } = context;
  if (await fsconfigCreateAsync(fd) >= 0) return context;
  const words = kernelWords(fd);
  await closeAsync(fd);
  const second = (await openContext({ ...plan, type })).fd;
  const result = fsconfigCreate(second);
  if (result >= 0) return { fd: second, type };
  const more = kernelWords(second);
  await closeAsync(second);
  throw mountError(plan, -result, "fsconfig", more.length > 0 ? more : words);
}

/** Other names of a type that blkid has one name for. */
const KERNEL_NAMES: Readonly<Record<string, readonly string[]>> = {
  ntfs: ["ntfs3", "ntfs"],
  ext2: ["ext2", "ext4"],
  ext3: ["ext3", "ext4"],
};

/** A context with all options set. */
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

/** On another thread where a module has to be loaded: a descriptor, or a negative error number. */
async function openType(plan: Plan, type: string): Promise<number> {
  const list = readWhole("/proc/filesystems");
  const lines = typeof list === "string" ? list.split("\n") : [];
  // It would take no notice of the device.
  if (lines.includes(`nodev\t${type}`)) {
    throw mountError(plan, EINVAL, "fsopen", [
      "it is a file system that has no device",
    ]);
  }
  return lines.includes(`\t${type}`) ? fsopen(type) : await fsopenAsync(type);
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

/** The kernel keeps so many. */
const MAX_MESSAGES = 8;
const message = new Uint8Array(4096);

/** What the kernel says about a context, errors only where there are some: `ext4: Unknown parameter 'x'`. */
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

/** Why the kernel does not mount. */
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

/** How a file system is told not to write to its journal, where it has one. */
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
