import { quote } from "../errors.ts";
import { partitionTable } from "../partitions/partitions.ts";
import { openFile } from "../kernel/file_descriptor.ts";
import type { ShownTable } from "../partitions/appear.ts";
import { only, parse, parseDevice, UsageError } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { drawDisk } from "./drawing.ts";
import { fileOf } from "./files.ts";
import { printJson, printLines, terminalWidth, warn } from "./output.ts";
import { describeUnusable } from "../partitions/table.ts";
import { partitionTypeName } from "./partition_types.ts";
import { formatSize, table } from "./table.ts";

const OPTIONS: Options = {
  json: {
    help:
      'print {"partitions": [...]}, and fileSystem if there is no table; sizes in bytes',
  },
  bytes: { help: "print sizes in bytes, even on a terminal" },
};

export const command: Command = {
  title:
    "Make partitions of a loop device appear and list them, or those of a file.",
  examples: `loopdev partitions /dev/loop0
loopdev partitions disk.img
loopdev partitions 0 --json | jq -r '.partitions[].path'`,
  options: OPTIONS,
  notes:
    `The table, GPT or MBR, is read by this program: neither the kernel's parsers nor udev
is needed. On a terminal, the disk is drawn to scale and types have names; if the terminal
is too narrow, UUIDs and the middle of long names are left out. Prints nothing if there is
no table; a table that cannot be read at all is an error. The table of a FILE (./3 for a
file named 3) is only read: nothing is attached. Permissions: deno run --allow-ffi, and
root for devices.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const shown = await tableOf(only(given.operands, "DEV or FILE"));
  const { partitions: found, fileSystem, unusable, size } = shown;
  for (const { path, problem } of found) {
    if (problem !== undefined) warn(`${quote(path)}: ${problem}`);
  }
  if (unusable.length > 0) warn(describeUnusable(unusable));
  if (given.flag("json")) {
    printJson({
      partitions: found,
      ...(fileSystem !== undefined && { fileSystem }),
    });
    return 0;
  }
  const width = terminalWidth();
  const human = width !== undefined && !given.flag("bytes");
  const show = human ? formatSize : String;
  const lines = table(found, [
    { heading: "NAME", cell: ({ path }) => path, narrowed: "cells" },
    { heading: "START", cell: ({ start }) => show(start), right: true },
    { heading: "SIZE", cell: ({ size }) => show(size), right: true },
    {
      heading: "TYPE",
      cell: ({ type = "" }) => human ? partitionTypeName(type) : type,
      narrowed: "cells",
    },
    { heading: "FSTYPE", cell: ({ fileSystem }) => fileSystem?.type ?? "" },
    { heading: "LABEL", cell: ({ name = "" }) => name, narrowed: "cells" },
    { heading: "UUID", cell: ({ uuid = "" }) => uuid, narrowed: "column" },
  ], { width });
  // A drawing shows the layout better than numbers do.
  if (human && found.length > 0) {
    printLines(drawDisk(found, size, width!));
  }
  printLines(lines);
  return 0;
}

/** Reads the partition table of a device, or of a file, whose name need not be UTF-8. */
async function tableOf(operand: string): Promise<ShownTable> {
  const file = fileOf(operand);
  if (typeof file === "string") return await partitionTable(parseDevice(file));
  const { readImage } = await import("../partitions/image_file.ts");
  const image = await readImage(file);
  if (image !== undefined) return withoutPrefix(image);
  openFile(file, { readOnly: true }).close(); // throws the reason
  throw new UsageError(`${quote(operand)} is not UTF-8`); // a device
}

/** Names partitions as the user named the file, whose URL leads through a link to the working directory. */
function withoutPrefix(image: ShownTable): ShownTable {
  const partitions = image.partitions.map((partition) => ({
    ...partition,
    path: partition.path.replace(/^\/proc\/self\/cwd\//, ""),
  }));
  return { ...image, partitions };
}
