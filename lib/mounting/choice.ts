/** Chooses the file system of a disk to mount: the requested one, or the only one. */
import { LoopError, printable, quote } from "../errors.ts";
import { exactSize, type Loop } from "../kernel/loop.ts";
import { partitionsOf } from "../kernel/loop_sysfs.ts";
import type { NodeOwner } from "../kernel/node_directory.ts";
import { showTable } from "../partitions/appear.ts";
import { DamagedTable } from "../partitions/table_entry.ts";
import type { ByteSource } from "../partitions/byte_source.ts";
import type { Partition } from "../partitions/partition.ts";
import { readAhead } from "../partitions/read_ahead.ts";
import { readTable } from "../partitions/table.ts";
import { EINVAL, ENOENT } from "../sys/errno.ts";
import { DEFAULT_TIMEOUT } from "../waiting.ts";
import type { MountRequest } from "./options.ts";
import { type FileSystem, recognize } from "./recognize.ts";

/** An open disk. */
export interface Disk {
  readonly loop: Loop;
  /** Path of a node of the disk. */
  readonly path: string;
  readonly owner: NodeOwner | undefined;
}

/** A device to mount: the disk or a partition. */
export interface Choice {
  readonly path: string;
  /** Content of the device, if it is known. */
  readonly fileSystem?: FileSystem | undefined;
}

/** Chooses the device to mount. */
export async function choose(
  disk: Disk,
  request: MountRequest,
): Promise<Choice> {
  const { partition, signal } = request;
  const { whole, hasPartitions } = await examineDisk(disk, signal);
  exactSize(disk.loop); // throws if it was detached during the read
  if (partition === undefined && !hasPartitions) {
    return { path: disk.path, fileSystem: whole };
  }
  const waiting = { timeout: DEFAULT_TIMEOUT, signal };
  const { partitions: all } = await showTable(disk.loop, waiting, disk.owner);
  return partition === undefined
    ? chooseAmong(disk, whole, all)
    : find(disk, all, partition);
}

async function examineDisk(
  disk: Disk,
  signal: AbortSignal | undefined,
): Promise<{ whole: FileSystem | undefined; hasPartitions: boolean }> {
  const { loop, path } = disk;
  const size = Number(exactSize(loop));
  return await readAhead(
    { fd: loop.fd, start: 0, size, name: quote(path), signal },
    (source) => {
      const whole = recognize(source);
      return { whole, hasPartitions: mayHavePartitions(loop, source, whole) };
    },
  );
}

/** File systems that may contain a partition table for firmware. Its partitions are parts of the file system. */
const WITH_TABLE = ["iso9660", "udf"];

/** Checks for partitions. A damaged table counts only if no file system is recognized on the disk. */
function mayHavePartitions(
  loop: Loop,
  source: ByteSource,
  whole: FileSystem | undefined,
): boolean {
  if (whole !== undefined && WITH_TABLE.includes(whole.type)) return false;
  if (partitionsOf(loop.minor).length > 0) return true;
  try {
    const table = readTable(source, { sectorSize: loop.getBlockSize() });
    return table !== undefined && table.partitions.length > 0;
  } catch (error) {
    if (!(error instanceof DamagedTable)) throw error;
    return whole === undefined;
  }
}

const OPENED = "cryptsetup opens it, and what that gives is mounted";

/** Contents that cannot be mounted, with advice for each. */
const NOT_MOUNTED: Readonly<Record<string, string>> = Object.fromEntries(
  [
    ["crypto_LUKS", `it is encrypted: ${OPENED}`],
    ["BitLocker", `it is encrypted: ${OPENED}`],
    [
      "LVM2_member",
      "it is a part of a volume group of LVM: vgchange activates that, and its volumes are mounted",
    ],
    [
      "linux_raid_member",
      "it is a part of a RAID: mdadm assembles it, and what that gives is mounted",
    ],
    ["swap", "it is swap space, not a file system"],
    ["swsuspend", "it is the image of a suspended system, not a file system"],
    ["jbd", "it is the journal of another file system"],
  ],
);

function isMountable(fileSystem: FileSystem | undefined): boolean {
  return fileSystem !== undefined &&
    !Object.hasOwn(NOT_MOUNTED, fileSystem.type);
}

function chooseAmong(
  disk: Disk,
  whole: FileSystem | undefined,
  partitions: readonly Partition[],
): Choice {
  const found = partitions.filter(({ fileSystem }) => isMountable(fileSystem));
  if (whole !== undefined) {
    const isEmpty = partitions.every(({ fileSystem }) => !fileSystem);
    if (isEmpty) return { path: disk.path, fileSystem: whole };
    // One of the two is stale, and writing to it would corrupt the other, even if that
    // cannot be mounted: a volume group, an encrypted partition.
    throw refusal(
      disk,
      `the whole disk is recognized (${
        printable(whole.type)
      }), and so are partitions: ${describe(partitions)}; ${
        found.length > 0
          ? "choose one with partition"
          : "wipefs erases what is stale"
      }`,
    );
  }
  if (found.length === 1) return found[0]!;
  if (partitions.length === 0) return { path: disk.path };
  throw refusal(
    disk,
    found.length === 0
      ? `no partition has a file system that is known here: ${
        describe(partitions)
      }`
      : `it has several file systems: ${
        describe(partitions)
      }; choose one with partition`,
  );
}

function find(
  disk: Disk,
  partitions: readonly Partition[],
  wanted: number | string,
): Partition {
  const matching = partitions.filter(({ number, name }) =>
    typeof wanted === "number" ? number === wanted : name === wanted
  );
  if (matching.length === 1) return matching[0]!;
  const what = typeof wanted === "number" ? wanted : quote(wanted);
  const there = partitions.length === 0
    ? "it has no partitions"
    : `its partitions are ${describe(partitions)}`;
  throw refusal(
    disk,
    matching.length === 0
      ? `there is no partition ${what}: ${there}`
      : `several partitions have the name ${what}: ${describe(matching)}`,
    matching.length === 0 ? ENOENT : EINVAL,
  );
}

/** Limit of partitions named in a message. */
const MAX_NAMED = 10;

/** Describes partitions in a message: `1 "boot" (vfat), 2 (nothing known)`. */
function describe(partitions: readonly Partition[]): string {
  const words = partitions.slice(0, MAX_NAMED).map(
    ({ number, name, fileSystem }) =>
      `${number}${name === undefined ? "" : ` ${quote(name)}`} (${
        fileSystem === undefined ? "nothing known" : printable(fileSystem.type)
      })`,
  );
  const rest = partitions.length - words.length;
  return [...words, ...rest > 0 ? [`and ${rest} more`] : []].join(", ");
}

function refusal({ path }: Disk, hint: string, errno = EINVAL): LoopError {
  return new LoopError(`Cannot mount ${quote(path)}`, {
    errno,
    operation: "mount",
    path,
    hint,
  });
}

/** Returns the type to mount a device as. */
export function typeOf(
  path: string,
  fileSystem: FileSystem | undefined,
): string {
  const hint = fileSystem === undefined
    ? "no file system is recognized on it; type names one"
    : Object.hasOwn(NOT_MOUNTED, fileSystem.type)
    ? `${NOT_MOUNTED[fileSystem.type]} (${fileSystem.type})`
    : undefined;
  if (hint === undefined) return fileSystem!.type;
  throw new LoopError(`Cannot mount ${quote(path)}`, {
    errno: EINVAL,
    operation: "mount",
    path,
    hint,
  });
}

/** File systems that are always read-only. The kernel refuses to mount some of them for writing. */
const WITHOUT_WRITING = ["cramfs", "erofs", "iso9660", "squashfs"];

/** Returns the requested mode. By default, a mount is read-only if its type or device is. */
export function isToBeReadOnly(
  wanted: boolean | undefined,
  type: string,
  isDeviceReadOnly: boolean,
): boolean {
  return wanted ?? (isDeviceReadOnly || WITHOUT_WRITING.includes(type));
}
