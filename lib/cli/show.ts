import { describeHolder } from "../describe_holder.ts";
import { openAttached } from "../attaching/open_attached.ts";
import { checkNotRecycled, minorOf } from "../device_ref.ts";
import { inspect } from "../devices.ts";
import { escapeControls, LoopError, quote } from "../errors.ts";
import type { Holder } from "../holder.ts";
import { holders as holdersOf } from "../holders.ts";
import type { LoopDevice } from "../kernel/attached_devices.ts";
import { extentOf, partitionsOf, rdevOf } from "../kernel/loop_sysfs.ts";
import type { FileSystem } from "../mounting/recognize.ts";
import type { Partition } from "../partitions/partition.ts";
import { describeUnusable } from "../partitions/table.ts";
import { EACCES, ENODEV, ENOENT, ENXIO, EPERM } from "../sys/errno.ts";
import { parse, parseDevice, UsageError } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { print, printJson, warn } from "./output.ts";
import { report } from "./report.ts";
import { formatSize } from "./table.ts";

const OPTIONS: Options = {
  json: {
    help:
      'print {"devices": [...]}: the fields of list --json, reference, fileSystem, partitions as in partitions --json, tableProblem, holders, and complete (false if some users could not be checked)',
  },
};

export const command: Command = {
  title: "Show everything about loop devices, and who keeps them busy.",
  examples: `loopdev show /dev/loop0
loopdev show 0 1
loopdev show 0 --json | jq '.devices[0].holders'`,
  options: OPTIONS,
  notes:
    `Holders are mounts, swap, block devices on top, and processes that have the device
open. Changes nothing: partitions are those that the kernel has. Without root, properties
that are read from the open device and processes of other users are missing. Permissions:
deno run --allow-ffi.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const devices = given.operands.map(parseDevice);
  if (devices.length === 0) throw new UsageError("DEV is missing");
  const asJson = given.flag("json");
  const shown: Details[] = [];
  const tried = new Set<number>();
  let status = 0;
  for (const device of devices) {
    try {
      const minor = minorOf(device);
      if (tried.has(minor)) continue; // named twice
      tried.add(minor);
      const details = await detailsOf(minor);
      if (!asJson) {
        if (shown.length > 0) print("");
        printRows(rowsOf(details));
      }
      shown.push(details);
    } catch (error) {
      status = report(error);
    }
  }
  if (asJson) printJson({ devices: shown });
  return status;
}

/** A device with its content and its users. */
type Details = Omit<LoopDevice, "reference"> & Content & {
  holders: Holder[];
  /** `false` if some processes and mounts could not be checked. */
  complete: boolean;
};

async function detailsOf(minor: number): Promise<Details> {
  const device = inspect(minor);
  if (device === undefined) throw notAttached(minor);
  const { holders, complete } = await holdersOf(device);
  if (!complete) {
    warn(`${device.path}: some processes and mounts could not be checked`);
  }
  return { ...device, ...await contentOf(device), holders, complete };
}

function notAttached(minor: number): LoopError {
  const path = `/dev/loop${minor}`;
  const isThere = rdevOf(minor) !== undefined;
  return new LoopError(`Cannot show ${quote(path)}`, {
    errno: isThere ? ENXIO : ENOENT,
    operation: "open",
    path,
    hint: isThere ? "no file is attached to it" : undefined,
  });
}

/** What this command does, for messages. */
const ACTION = "show";

/** Properties that are read from the open device. */
interface Content {
  /** `null` if the device may not be opened. */
  reference: string | null;
  /** File system of a device without a partition table. */
  fileSystem?: FileSystem;
  /** Partitions that the kernel has. */
  partitions: Partition[];
  /** Problem of the table as a whole. */
  tableProblem?: string;
}

/** Reads the content of a device, unless it is now bound to another file. */
async function contentOf(device: LoopDevice): Promise<Content> {
  const { minor } = device;
  try {
    using loop = openAttached(device, ACTION);
    const { lookAt } = await import("../partitions/appear.ts");
    const { partitions, fileSystem, damage, unusable } = await lookAt(loop);
    const problems = damage === undefined ? unusable : [damage];
    return {
      reference: loop.getInfo().fileName,
      ...(fileSystem !== undefined && { fileSystem }),
      partitions,
      ...(problems.length > 0 && { tableProblem: describeUnusable(problems) }),
    };
  } catch (error) {
    const isForbidden = error instanceof LoopError &&
      [EACCES, EPERM, ENOENT, ENODEV].includes(error.errno);
    if (!isForbidden) throw error;
    const partitions = partitionsOf(minor).map((partition): Partition => ({
      number: partition.number,
      path: `/dev/${partition.name}`,
      ...(extentOf(minor, partition) ?? { start: 0, size: 0 }),
    }));
    checkNotRecycled(ACTION, device);
    return { reference: null, partitions };
  }
}

type Row = [name: string, value: string];

/** Returns rows of a name and a value. */
function rowsOf(details: Details): Row[] {
  const { fileSystem, tableProblem } = details;
  const human = (bytes: number): string =>
    bytes < 1024 ? `${bytes}` : `${bytes} (${formatSize(bytes)})`;
  return [
    ["device", details.path],
    ["backing file", details.backingFile],
    ["deleted", yes(details.deleted)],
    ["size", human(details.size)],
    ["offset", human(details.offset)],
    ["sizelimit", human(details.sizelimit)],
    ["block size", `${details.blockSize}`],
    ["read-only", yes(details.readOnly)],
    ["autoclear", yes(details.autoclear)],
    ["partscan", yes(details.partscan)],
    ["direct I/O", yes(details.directIo)],
    ["reference", details.reference ?? "(the device may not be opened)"],
    ["disk sequence", `${details.diskSequence}`],
    ...list("file system", fileSystem ? [describe(fileSystem)] : []),
    ...list("table problem", tableProblem ? [tableProblem] : []),
    ...list("partitions", details.partitions.map(describePartition), "none"),
    ...list(
      "holders",
      details.holders.map(describeHolder),
      details.complete ? "none" : "unknown",
    ),
  ];
}

/** Returns one row per value, the first one with the name. */
function list(name: string, values: string[], otherwise?: string): Row[] {
  if (values.length === 0) return otherwise ? [[name, otherwise]] : [];
  return values.map((value, index) => [index === 0 ? name : "", value]);
}

function printRows(rows: readonly Row[]): void {
  const width = Math.max(...rows.map(([name]) => name.length));
  for (const [name, value] of rows) {
    print(`${name.padEnd(width)}  ${escapeControls(value)}`.trimEnd());
  }
}

function describePartition(partition: Partition): string {
  const { path, size, fileSystem, problem } = partition;
  return [
    path,
    formatSize(size),
    ...fileSystem === undefined ? [] : [describe(fileSystem)],
    ...problem === undefined ? [] : [problem],
  ].join("  ");
}

/** Describes a file system: `ext4 "root"`. */
function describe({ type, label }: FileSystem): string {
  return label === undefined ? type : `${type} ${quote(label)}`;
}

function yes(value: boolean): string {
  return value ? "yes" : "no";
}
