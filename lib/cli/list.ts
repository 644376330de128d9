import type { LoopDevice } from "../kernel/attached_devices.ts";
import { list } from "../devices.ts";
import { quote } from "../errors.ts";
import { parse, UsageError } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { print, printJson } from "./output.ts";
import { type Column, formatSize, table } from "./table.ts";

type Show = (size: number) => string;

/** The columns, under losetup's names where it has them. */
const COLUMNS: Record<string, (show: Show) => Column<LoopDevice>> = {
  NAME: () => ({ cell: (device) => device.path }),
  SIZE: (show) => ({ cell: (device) => show(device.size), right: true }),
  OFFSET: (show) => ({ cell: (device) => show(device.offset), right: true }),
  SIZELIMIT: (show) => ({
    cell: (device) => show(device.sizelimit),
    right: true,
  }),
  "LOG-SEC": () => ({ cell: (device) => `${device.blockSize}`, right: true }),
  AUTOCLEAR: () => ({ cell: (device) => bit(device.autoclear), right: true }),
  RO: () => ({ cell: (device) => bit(device.readOnly), right: true }),
  PARTSCAN: () => ({ cell: (device) => bit(device.partscan), right: true }),
  DIO: () => ({ cell: (device) => bit(device.directIo), right: true }),
  DISKSEQ: () => ({ cell: (device) => `${device.diskSequence}`, right: true }),
  "BACK-FILE": () => ({
    cell: (device) => device.backingFile + (device.deleted ? " (deleted)" : ""),
  }),
};

const DEFAULT_COLUMNS = [
  "NAME",
  "SIZE",
  "OFFSET",
  "SIZELIMIT",
  "LOG-SEC",
  "AUTOCLEAR",
  "RO",
  "DIO",
  "BACK-FILE",
];

const OPTIONS: Options = {
  json: { help: 'print {"devices": [...]}, sizes in bytes' },
  output: {
    letter: "O",
    value: "LIST",
    help: `these columns, with commas between them: ${
      Object.keys(COLUMNS).join(", ")
    }`,
    choices: Object.keys(COLUMNS),
  },
  noheadings: { letter: "n", help: "no line of headings" },
  bytes: { help: "sizes in bytes, also on a terminal" },
};

export const command: Command = {
  title: "List the attached loop devices.",
  examples: `loopdev list
loopdev list --json | jq -r '.devices[].backingFile'
loopdev list -n -O NAME,BACK-FILE`,
  options: OPTIONS,
  notes:
    `Without devices nothing is printed. No device is opened, and no right is needed.
Permissions: deno run --allow-ffi.`,
  run,
};

function run(args: string[]): number {
  const given = parse(args, OPTIONS);
  if (given.operands.length > 0) throw new UsageError("list takes no operand");
  const names = columnNames(given.value("output"));
  if (given.flag("json")) {
    if (given.value("output") !== undefined) {
      throw new UsageError("--json has all fields: --output is for the table");
    }
    printJson({ devices: list() });
    return 0;
  }
  const human = !given.flag("bytes") && Deno.stdout.isTerminal();
  printTable(list(), { names, human, headings: !given.flag("noheadings") });
  return 0;
}

function columnNames(output: string | undefined): string[] {
  if (output === undefined) return DEFAULT_COLUMNS;
  return output.split(",").map((name) => {
    const column = name.trim().toUpperCase();
    if (Object.hasOwn(COLUMNS, column)) return column;
    throw new UsageError(
      `there is no column ${quote(name)}: there are ${
        Object.keys(COLUMNS).join(",")
      }`,
    );
  });
}

/** Prints devices as a table; nothing when there are none. */
export function printTable(
  devices: LoopDevice[],
  { names = DEFAULT_COLUMNS, human = false, headings = true } = {},
): void {
  const show = human ? formatSize : String;
  const columns = names.map((name) => ({
    heading: name,
    ...COLUMNS[name]!(show),
  }));
  for (const line of table(devices, columns, headings)) print(line);
}

function bit(value: boolean): string {
  return value ? "1" : "0";
}
