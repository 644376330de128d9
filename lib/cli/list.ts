import type { LoopDevice } from "../kernel/attached_devices.ts";
import { list, listWithReferences } from "../devices.ts";
import { quote } from "../errors.ts";
import { type Arguments, none, parse, UsageError } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { FILTERS, listFilter } from "./filters.ts";
import { printJson, printLines, terminalWidth } from "./output.ts";
import { suggest } from "./spelling.ts";
import { type Column, formatSize, table } from "./table.ts";

type DeviceColumn = Omit<Column<LoopDevice>, "heading">;

/** Makes a column of sizes, in bytes or with units. */
function size(
  of: (device: LoopDevice) => number,
  human: boolean,
): DeviceColumn {
  const format = human ? formatSize : String;
  return { cell: (device) => format(of(device)), right: true };
}

/** Makes a column of flags, 0 or 1. */
function flag(of: (device: LoopDevice) => boolean): DeviceColumn {
  return { cell: (device) => of(device) ? "1" : "0", right: true };
}

/** Columns, named as in losetup if it has them. */
const COLUMNS: Record<string, (human: boolean) => DeviceColumn> = {
  NAME: () => ({ cell: ({ path }) => path }),
  SIZE: (human) => size((device) => device.size, human),
  OFFSET: (human) => size(({ offset }) => offset, human),
  SIZELIMIT: (human) => size(({ sizelimit }) => sizelimit, human),
  "LOG-SEC": () => size(({ blockSize }) => blockSize, false),
  AUTOCLEAR: () => flag(({ autoclear }) => autoclear),
  RO: () => flag(({ readOnly }) => readOnly),
  PARTSCAN: () => flag(({ partscan }) => partscan),
  DIO: () => flag(({ directIo }) => directIo),
  DISKSEQ: () => size(({ diskSequence }) => diskSequence, false),
  REF: () => ({ cell: ({ reference = "" }) => reference, narrowed: "cells" }),
  "BACK-FILE": () => ({
    cell: ({ backingFile, deleted }) =>
      backingFile + (deleted ? " (deleted)" : ""),
    narrowed: "cells",
  }),
};

const DEFAULT_COLUMNS =
  "NAME,SIZE,OFFSET,SIZELIMIT,LOG-SEC,AUTOCLEAR,RO,DIO,BACK-FILE";

const OPTIONS: Options = {
  json: { help: 'print {"devices": [...]}, sizes in bytes' },
  output: {
    letter: "O",
    value: "LIST",
    help: `show these columns, separated by commas: ${
      Object.keys(COLUMNS).join(", ")
    }`,
    choices: Object.keys(COLUMNS),
  },
  noheadings: { letter: "n", help: "omit the headings" },
  bytes: { help: "print sizes in bytes, even on a terminal" },
  ...FILTERS,
};

export const command: Command = {
  title: "List the attached loop devices.",
  examples: `loopdev list
loopdev list --json | jq -r '.devices[].backingFile'
loopdev list -n -O NAME,BACK-FILE
loopdev list --under /tmp/build --deleted`,
  options: OPTIONS,
  notes:
    `Prints nothing if there are none. On a terminal that is too narrow, the middle of
long names is left out. Only --loop-ref and the column REF open devices, which needs root.
Permissions: deno run --allow-ffi.`,
  run,
};

function run(args: string[]): number {
  const given = parse(args, OPTIONS);
  none(given.operands);
  const names = columnNames(given.value("output"));
  if (given.flag("json")) {
    if (given.value("output") !== undefined) {
      throw new UsageError("--json has all fields; --output is for the table");
    }
    printJson({ devices: list(listFilter(given)) });
    return 0;
  }
  printTable(given, names);
  return 0;
}

function columnNames(output = DEFAULT_COLUMNS): string[] {
  return output.split(",").map((name) => {
    const column = name.trim().toUpperCase();
    if (Object.hasOwn(COLUMNS, column)) return column;
    const known = Object.keys(COLUMNS);
    throw new UsageError(
      `unknown column ${quote(name)}${
        suggest(column, known) || `: the columns are ${known.join(",")}`
      }`,
    );
  });
}

function printTable(given: Arguments, names: readonly string[]): void {
  const filter = listFilter(given) ?? {};
  const devices = names.includes("REF")
    ? listWithReferences(filter)
    : list(filter);
  const width = terminalWidth();
  const human = width !== undefined && !given.flag("bytes");
  const columns = names.map((heading) => ({
    heading,
    ...COLUMNS[heading]!(human),
  }));
  const headings = !given.flag("noheadings");
  printLines(table(devices, columns, { headings, width }));
}
