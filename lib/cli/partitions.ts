import { quote } from "../errors.ts";
import { partitionTable } from "../partitions/partitions.ts";
import { only, parse, parseDevice } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { drawDisk } from "./drawing.ts";
import { print, printJson, warn } from "./output.ts";
import { describeUnusable } from "../partitions/table.ts";
import { partitionTypeName } from "./partition_types.ts";
import { formatSize, table } from "./table.ts";

const OPTIONS: Options = {
  json: { help: 'print {"partitions": [...]}, sizes in bytes' },
  bytes: { help: "sizes in bytes, also on a terminal" },
};

export const command: Command = {
  title:
    "Make partitions of a loop device appear, and list them; or those of a file.",
  examples: `loopdev partitions /dev/loop0
loopdev partitions disk.img
loopdev partitions 0 --json | jq -r '.partitions[].path'`,
  options: OPTIONS,
  notes:
    `The table, GPT or MBR, is read here, so that neither the kernel's parsers nor udev are
needed. On a terminal the disk is drawn to scale, and types have names. Without a table
nothing is printed; one of which nothing can be used is an error that says why. Of a FILE
(./3 for one that is called 3) the table is read, and nothing is attached.
Permissions: deno run --allow-ffi, and for devices root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const device = parseDevice(only(given.operands, "DEV or FILE"));
  const { partitions: found, unusable, size } = await partitionTable(device);
  for (const { path, problem } of found) {
    if (problem !== undefined) warn(`${quote(path)}: ${problem}`);
  }
  if (unusable.length > 0) warn(describeUnusable(unusable));
  if (given.flag("json")) {
    printJson({ partitions: found });
    return 0;
  }
  const human = !given.flag("bytes") && Deno.stdout.isTerminal();
  const show = human ? formatSize : String;
  const lines = table(found, [
    { heading: "NAME", cell: ({ path }) => path },
    { heading: "START", cell: ({ start }) => show(start), right: true },
    { heading: "SIZE", cell: ({ size }) => show(size), right: true },
    {
      heading: "TYPE",
      cell: ({ type = "" }) => human ? partitionTypeName(type) : type,
    },
    { heading: "FSTYPE", cell: ({ fileSystem }) => fileSystem?.type ?? "" },
    { heading: "LABEL", cell: ({ name = "" }) => name },
    { heading: "UUID", cell: ({ uuid = "" }) => uuid },
  ]);
  // Where they are on the disk shows more than numbers do.
  if (human && found.length > 0) {
    drawDisk(found, size, Deno.consoleSize().columns).forEach(print);
  }
  lines.forEach(print);
  return 0;
}
