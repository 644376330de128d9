import { inspect } from "../devices.ts";
import { escapeControls, LoopError, quote } from "../errors.ts";
import { describeHolder } from "../describe_holder.ts";
import { findHolders } from "../holder_search.ts";
import type { Holder } from "../holder.ts";
import type { LoopDevice } from "../kernel/attached_devices.ts";
import { extentOf, partitionsOf, rdevOf } from "../kernel/loop_sysfs.ts";
import type { FileSystem } from "../mounting/file_system.ts";
import type { Partition } from "../partitions/partition.ts";
import { openLoop } from "../kernel/nodes.ts";
import { EACCES, ENODEV, ENOENT, ENXIO, EPERM } from "../sys/errno.ts";
import { only, parse, parseDeviceNumber } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { print, printJson, warn } from "./output.ts";
import { formatSize } from "./table.ts";

const OPTIONS: Options = {
  json: {
    help:
      'print {"devices": [...]}: the fields of list --json, the reference, the file system, the partitions that the kernel has, and the holders',
  },
};

export const command: Command = {
  title: "Show everything about one loop device, and who keeps it busy.",
  examples: `loopdev show /dev/loop0
loopdev show 0 --json | jq '.devices[0].holders'`,
  options: OPTIONS,
  notes:
    `Holders are mounts, swap, block devices on top, and processes that have it open; those
of other users are seen as root only. Permissions: deno run --allow-ffi.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const minor = parseDeviceNumber(only(given.operands, "DEV"));
  const device = inspect(minor);
  if (device === undefined) {
    const path = `/dev/loop${minor}`;
    const isThere = rdevOf(minor) !== undefined;
    throw new LoopError(`Cannot show ${quote(path)}`, {
      errno: isThere ? ENXIO : ENOENT,
      operation: "open",
      path,
      hint: isThere ? "no file is attached to it" : undefined,
    });
  }
  const { holders, complete } = await findHolders(minor);
  const details = {
    ...device,
    ...await contentOf(minor),
    holders,
  };
  if (!complete) warn("what other users do cannot be seen");
  if (given.flag("json")) {
    printJson({ devices: [details] });
    return 0;
  }

  const rows = rowsOf(details);
  const width = Math.max(...rows.map(([key]) => key.length));
  for (const [key, value] of rows) {
    print(`${key.padEnd(width)}  ${escapeControls(value)}`.trimEnd());
  }
  return 0;
}

/** A device with what is on it, and who uses it. */
type Details = Omit<LoopDevice, "reference"> & Content & { holders: Holder[] };

/** Everything that is known, as rows of a name and a value. */
function rowsOf(details: Details): [name: string, value: string][] {
  const { fileSystem, partitions, holders } = details;
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
    ["reference", details.reference ?? "(it may not be opened)"],
    ["disk sequence", `${details.diskSequence}`],
    ...(fileSystem === undefined ? [] : [
      ["file system", describeFileSystem(fileSystem)] as [
        string,
        string,
      ],
    ]),
    ...(partitions.length === 0
      ? [["partitions", "none"] as [string, string]]
      : []),
    ...partitions.map((
      { path, size, fileSystem },
      index,
    ): [string, string] => [
      index === 0 ? "partitions" : "",
      [
        path,
        formatSize(size),
        ...fileSystem === undefined ? [] : [describeFileSystem(fileSystem)],
      ].join("  "),
    ]),
    ...(holders.length === 0 ? [["holders", "none"] as [string, string]] : []),
    ...holders.map((holder, index): [string, string] => [
      index === 0 ? "holders" : "",
      describeHolder(holder),
    ]),
  ];
}

/** What only the device itself tells. */
interface Content {
  /** `null` when the device may not be opened. */
  reference: string | null;
  /** What is on a device without a table. */
  fileSystem?: FileSystem;
  /** Those that the kernel has. */
  partitions: Partition[];
}

async function contentOf(minor: number): Promise<Content> {
  try {
    using loop = openLoop(minor, { readOnly: true });
    const { lookAt } = await import("../partitions/appear.ts");
    const { partitions, fileSystem } = lookAt(loop);
    return {
      reference: loop.getInfo().fileName,
      ...(fileSystem !== undefined && { fileSystem }),
      partitions,
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
    return { reference: null, partitions };
  }
}

/** In one line: `ext4 "root"`. */
function describeFileSystem({ type, label }: FileSystem): string {
  return label === undefined ? type : `${type} ${quote(label)}`;
}

function yes(value: boolean): string {
  return value ? "yes" : "no";
}
