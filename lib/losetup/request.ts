/** Parses the command line into a request. */
import { ENODEV } from "../sys/errno.ts";
import type { ByteString } from "./byte_string.ts";
import { chooseColumns, type Column } from "./columns.ts";
import { isLoopNode } from "./device.ts";
import { Failure, systemFailure } from "./failure.ts";
import { getopt, type LongOption } from "./getopt.ts";
import { parseSize } from "./size.ts";
import type { TableStyle } from "./table.ts";

/** The action to perform. */
export type Action =
  | "help"
  | "version"
  | "list"
  | "show"
  | "find"
  | "create"
  | "detach"
  | "detach-all"
  | "remove"
  | "set-capacity"
  | "set-direct-io"
  | "set-block-size";

/** A parsed command line. */
export interface Request {
  readonly action: Action;
  /** The device to show, change, detach or attach to; any device if not given. */
  readonly device: ByteString | undefined;
  /** Further devices to detach, or the devices to remove. */
  readonly devices: readonly ByteString[];
  /** The file to attach, or whose devices to list. */
  readonly file: ByteString | undefined;
  readonly offset: bigint | undefined;
  readonly sizelimit: bigint | undefined;
  readonly blockSize: bigint | undefined;
  readonly directIo: boolean | undefined;
  readonly readOnly: boolean;
  readonly partscan: boolean;
  /** `true` to reuse a device with exactly these bytes, and refuse any other overlap. */
  readonly nooverlap: boolean;
  /** The reference text of the device; the path of the file if not given. */
  readonly reference: ByteString | undefined;
  /** `true` to print the name of the device. */
  readonly show: boolean;
  /** `true` to list devices as a table, not in the old format. */
  readonly table: boolean;
  readonly columns: readonly Column[];
  readonly format: TableStyle["format"];
  readonly headings: boolean;
}

const LETTERS = "ab:c:d:Dfhj:JlLno:O:PrvV";

const none = (name: string, key = name): LongOption => ({
  name,
  key,
  argument: "none",
});
const required = (name: string, key = name): LongOption => ({
  name,
  key,
  argument: "required",
});

const LONG: readonly LongOption[] = [
  none("all", "a"),
  required("set-capacity", "c"),
  required("detach", "d"),
  none("detach-all", "D"),
  none("find", "f"),
  none("nooverlap", "L"),
  none("help", "h"),
  required("associated", "j"),
  none("json", "J"),
  none("list", "l"),
  required("sector-size", "b"),
  none("noheadings", "n"),
  required("offset", "o"),
  required("output", "O"),
  none("output-all"),
  required("sizelimit"),
  none("partscan", "P"),
  none("read-only", "r"),
  { name: "direct-io", key: "direct-io", argument: "optional" },
  none("raw"),
  none("show"),
  none("verbose", "v"),
  none("version", "V"),
  // Options of later versions must not make abbreviations ambiguous that scripts use.
  { ...required("loop-ref"), isLate: true },
  { ...none("remove"), isLate: true },
];

/** Options of which only one in each row may be given. */
const EXCLUSIVE: readonly string[][] = [
  ["D", "a", "c", "d", "f", "j"],
  ["D", "c", "d", "f", "l"],
  ["J", "raw"],
];

/** Refuses options that exclude each other, as soon as the second one comes. */
class Exclusion {
  readonly #seen = new Set<string>();

  add(key: string): void {
    this.#seen.add(key);
    for (const row of EXCLUSIVE) {
      const keys = this.#seen.has("remove") && row[0] === "D"
        ? [...row, "remove"]
        : row;
      if (!keys.includes(key)) continue;
      if (keys.filter((key) => this.#seen.has(key)).length < 2) continue;
      const names = keys.map((key) =>
        `--${LONG.find((option) => option.key === key)!.name}`
      );
      throw new Failure(`mutually exclusive arguments: ${names.join(" ")}`);
    }
  }
}

/** Returns the device argument of an option. Relative names are in `/dev`. */
export function existingDevice(name: ByteString): ByteString {
  if (!isLoopNode(name)) {
    throw systemFailure(`${name}: failed to use device`, ENODEV);
  }
  return devicePath(name);
}

function devicePath(name: ByteString): ByteString {
  return name.startsWith("/") ? name : `/dev/${name}`;
}

const SETUP_ONLY =
  "the options --{sizelimit,partscan,read-only,show} are allowed during loop device setup only";

/** Parses the arguments. */
export function parseRequest(
  args: readonly ByteString[],
  isPosix: () => boolean,
): Request {
  const values = new Map<string, ByteString | undefined>();
  const sizes = new Map<string, bigint>();
  const operands: ByteString[] = [];
  const exclusion = new Exclusion();
  let action: Action | undefined;
  let device: ByteString | undefined;
  let directIo: boolean | undefined;
  let end: Action | undefined;

  const grammar = {
    letters: LETTERS,
    long: LONG,
    stopsAtOperand: isPosix,
  };
  for (const { key, value } of getopt(args, grammar, operands)) {
    exclusion.add(key);
    values.set(key, value);
    if (key === "h" || key === "V") {
      end = key === "h" ? "help" : "version";
      break;
    }
    if (Object.hasOwn(ACTIONS, key)) action = ACTIONS[key]!;
    if (key === "c" || key === "d") device = existingDevice(value!);
    if (Object.hasOwn(SIZES, key)) {
      sizes.set(key, parseSize(value!, SIZES[key]!));
    }
    if (key === "direct-io") directIo = parseSwitch(value ?? "on");
  }

  const has = (key: string) => values.has(key);
  const table = has("l") || has("O") || args.length === 0 ||
    (action === undefined && args.length === 1 && (has("J") || has("raw")));
  const request = {
    device,
    devices: operands,
    file: values.get("j"),
    offset: sizes.get("o"),
    sizelimit: sizes.get("sizelimit"),
    blockSize: sizes.get("b"),
    directIo,
    readOnly: has("r"),
    partscan: has("P"),
    nooverlap: has("L"),
    reference: values.get("loop-ref"),
    show: has("show"),
    table,
    format: format(has("J"), has("raw")),
    headings: !has("n"),
  };
  if (end !== undefined) return { ...request, action: end, columns: [] };
  const columns = chooseColumns(values.get("O"), has("output-all"));

  if (action === "find" && operands.length > 0) {
    if (operands.length > 1) throw new Failure("unexpected arguments");
    action = "create";
    request.file = operands[0];
  }
  if (action === undefined && operands.length === 0 && table) action = "list";
  if (action === undefined && operands.length === 1) {
    if (request.blockSize !== undefined) action = "set-block-size";
    if (directIo !== undefined) action = "set-direct-io";
    action ??= "show";
    request.device = existingDevice(operands[0]!);
  }
  if (action === undefined) {
    const [name, file] = operands;
    if (name === undefined) throw new Failure("no loop device specified");
    // A request for a list of two devices must not attach one to the other.
    if (["l", "O", "J", "raw", "n", "output-all"].some(has)) {
      throw new Failure("unexpected arguments");
    }
    action = "create";
    request.device = devicePath(name);
    request.file = file;
  }
  // -D in place of -d must not detach every device.
  if (action === "detach-all" && operands.length > 0) {
    throw new Failure("unexpected arguments");
  }
  if (action === "remove" && operands.length === 0) {
    throw new Failure("no loop device specified");
  }
  checkContext(action, request);
  return { ...request, action, columns };
}

const ACTIONS: Record<string, Action> = {
  a: "list",
  j: "list",
  c: "set-capacity",
  d: "detach",
  D: "detach-all",
  f: "find",
  remove: "remove",
};

const SIZES: Record<string, string> = {
  b: "failed to parse logical block size",
  o: "failed to parse offset",
  sizelimit: "failed to parse size",
};

function parseSwitch(text: ByteString): boolean {
  if (text === "on" || text === "off") return text === "on";
  throw new Failure(`argument error: '${text}'`);
}

function format(json: boolean, raw: boolean): TableStyle["format"] {
  if (json) return "json";
  return raw ? "raw" : "aligned";
}

/** Refuses options that do not apply to the action. */
function checkContext(
  action: Action,
  request: Omit<Request, "action" | "columns">,
): void {
  if (action === "create") return;
  const { sizelimit = 0n, readOnly, partscan, show, directIo } = request;
  const isSetup = sizelimit !== 0n || readOnly || partscan || show ||
    (directIo === true && action !== "set-direct-io");
  if (isSetup) throw new Failure(SETUP_ONLY);
  const isOffsetOfFile = action === "list" && request.file !== undefined;
  if (request.offset !== undefined && !isOffsetOfFile) {
    throw new Failure("the option --offset is not allowed in this context");
  }
}
