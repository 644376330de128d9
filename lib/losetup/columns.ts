/** Columns of the tables of losetup. */
import { majorMinor } from "../sys/stat.ts";
import type { ByteString } from "./byte_string.ts";
import type { Device } from "./device.ts";
import { Failure } from "./failure.ts";

/** A column. */
export interface Column {
  readonly name: string;
  /** Description for `--help`. */
  readonly help: string;
  /** Type of its values in JSON. */
  readonly type: "string" | "number" | "boolean";
  /** `true` for right alignment. */
  readonly right: boolean;
  /**
   * Returns the value for a device, or `undefined` if it has none or it cannot be
   * determined.
   */
  cell(device: Device): ByteString | undefined;
}

const text = (
  name: string,
  help: string,
  cell: (device: Device) => ByteString | undefined,
): Column => ({ name, help, type: "string", right: false, cell });

const number = (
  name: string,
  help: string,
  value: (device: Device) => bigint | number | undefined,
): Column => ({
  name,
  help,
  type: "number",
  right: true,
  cell: (device) => value(device)?.toString(),
});

const bit = (
  name: string,
  help: string,
  value: (device: Device) => boolean,
): Column => ({
  name,
  help,
  type: "boolean",
  right: true,
  cell: (device) => value(device) ? "1" : "0",
});

const pair = (number: number | undefined, width: number) => {
  if (number === undefined) return undefined;
  const [major, minor] = majorMinor(number).map(String);
  return `${major!.padStart(width)}:${minor!.padEnd(3)}`;
};

const part = (index: 0 | 1, rdev: number | undefined) =>
  rdev === undefined ? undefined : majorMinor(rdev)[index];

/** The columns of util-linux 2.38, in the order of `--output-all`. */
const ALL: readonly Column[] = [
  text("NAME", "path of the device", (device) => device.path),
  bit(
    "AUTOCLEAR",
    "detached at the last close",
    (device) => device.autoclear,
  ),
  text("BACK-FILE", "path of the file", (device) => device.backingFile),
  number("BACK-INO", "inode of the file", (device) => device.info?.inode),
  text(
    "BACK-MAJ:MIN",
    "device number of the file system of the file",
    ({ backingDevice }) => pair(backingDevice, 8),
  ),
  text("MAJ:MIN", "device number", ({ rdev }) => pair(rdev, 3)),
  number(
    "OFFSET",
    "offset in the file at which it starts",
    (device) => device.offset,
  ),
  bit("PARTSCAN", "scanned for partitions", (device) => device.partscan),
  bit("RO", "read-only", (device) => device.readOnly),
  number("SIZELIMIT", "maximum size", (device) => device.sizelimit),
  bit("DIO", "direct I/O to the file", (device) => device.directIo),
  number("LOG-SEC", "logical sector size", (device) => device.blockSize),
];

/** Columns of later versions of util-linux, which are printed only if named. */
const LATER: readonly Column[] = [
  text("REF", "text of --loop-ref", (device) => device.reference),
  number(
    "MAJ",
    "major number of the device",
    ({ rdev }) => part(0, rdev),
  ),
  number(
    "MIN",
    "minor number of the device",
    ({ rdev }) => part(1, rdev),
  ),
  text(
    "BACK-MAJ",
    "major number of the file system of the file",
    ({ backingDevice }) => part(0, backingDevice)?.toString(),
  ),
  text(
    "BACK-MIN",
    "minor number of the file system of the file",
    ({ backingDevice }) => part(1, backingDevice)?.toString(),
  ),
];

/** All columns that can be named. */
export const COLUMNS: readonly Column[] = [...ALL, ...LATER];

const DEFAULT = "NAME,SIZELIMIT,OFFSET,AUTOCLEAR,RO,BACK-FILE,DIO,LOG-SEC";

/**
 * Selects the columns to print: those of `--output`, appended to the default ones if
 * the list starts with `+`.
 */
export function chooseColumns(
  output: ByteString | undefined,
  all: boolean,
): readonly Column[] {
  const base = () => all ? ALL : parseColumns(DEFAULT);
  if (output === undefined) return base();
  return output.startsWith("+")
    ? [...base(), ...parseColumns(output.slice(1))]
    : parseColumns(output);
}

function parseColumns(list: ByteString): Column[] {
  if (list === "") throw new Failure();
  const columns: Column[] = [];
  for (let at = 0; at < list.length;) {
    const comma = list.indexOf(",", at);
    // A comma at the very end is treated as part of the name.
    const end = comma < 0 || comma === list.length - 1 ? list.length : comma;
    const name = list.slice(at, end);
    if (name === "") throw new Failure();
    const column = COLUMNS.find((it) => it.name === name.toUpperCase());
    if (column === undefined) {
      throw new Failure(`unknown column: ${list.slice(at)}`);
    }
    columns.push(column);
    at = end + 1;
  }
  return columns;
}
