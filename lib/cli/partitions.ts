import { inspect } from "../devices.ts";
import { quote } from "../errors.ts";
import type { Partition } from "../partitions/partition.ts";
import { partitions } from "../partitions/partitions.ts";
import { only, parse, parseDevice } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { drawDisk } from "./drawing.ts";
import { print, printJson, warn } from "./output.ts";
import { partitionTypeName } from "./partition_types.ts";
import { formatSize, table } from "./table.ts";

const OPTIONS: Options = {
  json: { help: 'print {"partitions": [...]}, sizes in bytes' },
  bytes: { help: "sizes in bytes, also on a terminal" },
};

export const command: Command = {
  title: "Make the partitions of a loop device appear, and list them.",
  examples: `loopdev partitions /dev/loop0
loopdev partitions 0 --json | jq -r '.partitions[].path'`,
  options: OPTIONS,
  notes:
    `The table, GPT or MBR, is read here, so that neither the kernel's parsers nor udev are
needed. On a terminal the disk is drawn to scale, and types have names. Without a table
nothing is printed; a damaged one is an error that says what is damaged.
Permissions: deno run --allow-ffi, and root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const device = parseDevice(only(given.operands, "DEV"));
  const found = await partitions(device);
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
    { heading: "LABEL", cell: ({ name = "" }) => name },
    { heading: "UUID", cell: ({ uuid = "" }) => uuid },
  ]);
  if (human) draw(found).forEach(print);
  lines.forEach(print);
  for (const { path, problem } of found) {
    if (problem !== undefined) warn(`${quote(path)}: ${problem}`);
  }
  return 0;
}

/** Where it is on the disk shows more than numbers do. */
function draw(found: Partition[]): string[] {
  const [first] = found;
  const minor = Number(first?.path.match(/loop(\d+)/)?.[1]);
  const disk = inspect(minor);
  if (disk === undefined) return [];
  return drawDisk(found, disk.size, Deno.consoleSize().columns);
}
