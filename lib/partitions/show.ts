/** Partitions that appear, whether or not the kernel can read the table, and udev is there. */
import { LoopError, quote, unwrap } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import {
  extentOf,
  type KernelPartition,
  partitionsOf,
  rdevOfPartition,
} from "../kernel/loop_sysfs.ts";
import { hasNode, type NodeDirectory } from "../kernel/node_directory.ts";
import { addPartition, deletePartition } from "../sys/blk_uapi.ts";
import { EBUSY, ENXIO, ETIMEDOUT, EUCLEAN } from "../sys/errno.ts";
import { pollUntil, sleep, type WaitOptions } from "../waiting.ts";
import { DamagedTable } from "./damaged_table.ts";
import { DescriptorSource } from "./descriptor_source.ts";
import type { Partition } from "./partition.ts";
import { readTable } from "./table.ts";
import type { TableEntry } from "./table_entry.ts";

/** Makes the partitions of an open device appear, and tells what they are. */
export async function showPartitions(
  loop: Loop,
  waiting: WaitOptions,
  nodes?: NodeDirectory,
): Promise<Partition[]> {
  // First, so that the kernel looks before we do, and drops them at the detach.
  loop.setStatus({ partscan: true });
  const entries = readEntries(loop);
  let missing: TableEntry[] = [];
  const looks = await pollUntil(async () => {
    // A scan that somebody else has caused drops and returns all of them.
    missing = await findMissing(loop, entries, nodes);
    return missing.length === 0;
  }, waiting);
  if (looks === undefined) throw notThere(loop, missing, nodes);
  return entries.map(({ isContainer: _, ...entry }) => ({
    ...entry,
    path: pathOf(loop, entry, nodes),
  }));
}

function pathOf(
  loop: Loop,
  { number }: TableEntry,
  nodes?: NodeDirectory,
): string {
  const name = `${loop.name}p${number}`;
  return nodes?.pathOf(name) ?? `/dev/${name}`;
}

function notThere(
  loop: Loop,
  missing: TableEntry[],
  nodes: NodeDirectory | undefined,
): LoopError {
  const paths = missing.map((entry) => pathOf(loop, entry, nodes));
  return new LoopError(
    `Cannot show the partitions of ${quote(loop.path)}`,
    {
      errno: ETIMEDOUT,
      operation: "open",
      path: paths[0],
      hint: `${paths.join(", ")} did not appear`,
    },
  );
}

function readEntries(loop: Loop): TableEntry[] {
  const range = { start: 0, size: loop.getSize() };
  const source = new DescriptorSource(loop.fd, range, quote(loop.path));
  try {
    const sectorSize = loop.getBlockSize();
    return readTable(source, { sectorSize })?.partitions ?? [];
  } catch (error) {
    if (!(error instanceof DamagedTable)) throw error;
    throw new LoopError(
      `Cannot read the partition table of ${quote(loop.path)}`,
      {
        errno: EUCLEAN,
        operation: "pread",
        path: loop.path,
        hint: error.message,
      },
    );
  }
}

/** So long the event loop stops at most: there may be hundreds of partitions. */
const SLICE_MILLISECONDS = 10;

/** The partitions that are not there yet, or whose nodes cannot be opened; what is missing is added. */
async function findMissing(
  loop: Loop,
  entries: readonly TableEntry[],
  nodes: NodeDirectory | undefined,
): Promise<TableEntry[]> {
  const known = new Map(
    partitionsOf(loop.minor).map((partition) => [partition.number, partition]),
  );
  const missing: TableEntry[] = [];
  let start = performance.now();
  for (const entry of entries) {
    if (performance.now() - start > SLICE_MILLISECONDS) {
      await sleep(0, undefined);
      start = performance.now();
    }
    const partition = known.get(entry.number);
    if (!appears(loop, entry, partition, nodes)) missing.push(entry);
  }
  return missing;
}

function appears(
  loop: Loop,
  entry: TableEntry,
  known: KernelPartition | undefined,
  nodes: NodeDirectory | undefined,
): boolean {
  if (known === undefined) {
    add(loop, entry);
    return false; // look again
  }
  if (!isSame(loop, known, entry)) {
    remove(loop, entry);
    return false;
  }
  const rdev = rdevOfPartition(loop.minor, known);
  if (rdev === undefined) return false;
  if (nodes === undefined) return hasNode(known.name, rdev);
  nodes.add(known.name, rdev);
  return nodes.canOpen(known.name, rdev);
}

/** Linux shows two sectors of an extended partition, enough for a boot loader. */
const CONTAINER_SIZE = 1024;

function extent(
  loop: Loop,
  { start, size, isContainer }: TableEntry,
): { start: number; size: number } {
  if (!isContainer) return { start, size };
  const shown = Math.max(CONTAINER_SIZE, loop.getBlockSize());
  return { start, size: Math.min(size, shown) };
}

function isSame(
  loop: Loop,
  known: KernelPartition,
  entry: TableEntry,
): boolean {
  const found = extentOf(loop.minor, known);
  const wanted = extent(loop, entry);
  return found === undefined ||
    (found.start === wanted.start &&
      (entry.isContainer === true || found.size === wanted.size));
}

function add(loop: Loop, entry: TableEntry): void {
  const result = addPartition(loop.fd, {
    number: entry.number,
    ...extent(loop, entry),
  });
  // Busy: the kernel has just added it itself, or another one is in the way, which
  // the next look tells.
  if (result === -EBUSY && isKnown(loop, entry)) return;
  unwrap(result, () => ({
    action: `Cannot add partition ${quote(pathOf(loop, entry))}`,
    operation: "BLKPG",
    path: loop.path,
    hint: { [EBUSY]: "another partition is in the way" },
  }));
}

function isKnown(loop: Loop, entry: TableEntry): boolean {
  return partitionsOf(loop.minor)
    .some(({ number }) => number === entry.number);
}

/** One of that number, which is elsewhere: of a table that was there before. */
function remove(loop: Loop, entry: TableEntry): void {
  const result = deletePartition(loop.fd, entry.number);
  if (result === -ENXIO) return;
  unwrap(result, () => ({
    action: `Cannot move partition ${quote(pathOf(loop, entry))}`,
    operation: "BLKPG",
    path: loop.path,
    hint: { [EBUSY]: "it is in use where the table had it before" },
  }));
}
