import { checkPath } from "../arguments.ts";
import { detach } from "../detach.ts";
import { describeHolders } from "../describe_holder.ts";
import { type DeviceRef, minorOf } from "../device_ref.ts";
import { find, inspect, listByPlace, type LoopDevice } from "../devices.ts";
import { LoopError, quote, StaleDeviceError } from "../errors.ts";
import { holders } from "../holders.ts";
import { EBUSY, ENOENT, ENXIO } from "../sys/errno.ts";
import { AT_FDCWD, cString } from "../sys/libc.ts";
import { isBlockDevice, statAt } from "../sys/stat.ts";
import {
  type Arguments,
  parse,
  parseDevice,
  TIMEOUT_OPTION,
  timeoutIn,
  UsageError,
} from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { fileOf } from "./files.ts";
import { FILTERS, listFilter } from "./filters.ts";
import { fail, OutputError, print, warn } from "./output.ts";
import { report } from "./report.ts";
import { waitForDevice, withWaitingMessage } from "./waiting_message.ts";

const OPTIONS: Options = {
  file: { value: "FILE", help: "the devices that FILE is attached to" },
  ...FILTERS,
  "dry-run": { help: "print the devices without detaching them" },
  "if-unused": {
    help: "fail at once and change nothing if a device is in use",
  },
  lazy: { help: "do not wait until other users have closed it" },
  ...TIMEOUT_OPTION,
};

export const command: Command = {
  title: "Detach loop devices, and wait until they are free.",
  examples: `loopdev detach /dev/loop0
loopdev detach 3 4 5
loopdev detach --file disk.img             all devices of a file
loopdev detach --loop-ref "build 7"        all devices of that name
loopdev detach --under /tmp/build          all devices of files below it
loopdev detach --deleted --dry-run         what a cleanup would detach`,
  options: OPTIONS,
  notes:
    `Everything written through a device is in the file when the command ends. If other
users have a device open, they are named after one second, and the kernel detaches it at
the last close.

Options that select devices narrow each other: --under DIR --deleted selects devices that
match both. --under leaves a device alone if the path of its file leads to another file
here, as in another container; of a deleted file, only the path is known. Devices named
as DEV are also detached. All devices are tried; the exit status
is 1 if one failed, or if --file or --loop-ref selects none.

Permissions: deno run --allow-ffi, and usually root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const options = {
    lazy: given.flag("lazy"),
    ifUnused: given.flag("if-unused"),
    timeout: timeoutIn(given),
  };
  const detachOne = given.flag("dry-run")
    ? async (device: DeviceRef) => await tellOne(device, options.ifUnused)
    : async (device: DeviceRef) => {
      const wait = waitForDevice(minorOf(device), options.timeout);
      await withWaitingMessage(wait, () => detach(device, options));
      if (typeof device === "string") warnAboutNode(device);
    };
  const named = given.operands.map(parseDevice);
  if (named.length === 0 && !hasSelection(given)) {
    throw new UsageError(
      "DEV is missing, or --file, --loop-ref, --under or --deleted",
    );
  }
  const selected = selectOrReport(given);
  let { status } = selected;
  const tried = new Set<number>();
  for (const device of [...named, ...selected.devices]) {
    try {
      const minor = minorOf(device);
      if (tried.has(minor)) continue; // named twice
      tried.add(minor);
      await detachOne(device);
    } catch (error) {
      if (error instanceof OutputError) throw error; // the next one, too
      // Another program may detach a device after it was selected.
      if (typeof device === "object" && isGone(error)) continue;
      status = report(error);
    }
  }
  return status;
}

/** Warns about a node outside of `/dev` that a device was named by, and that is left. */
function warnAboutNode(path: string): void {
  if (!path.includes("/") || path.startsWith("/dev/")) return;
  const node = statAt(AT_FDCWD, cString(path));
  if (typeof node === "number" || !isBlockDevice(node)) return;
  warn(
    `${
      quote(path)
    } stays, and gives access to later devices of that number: remove it and the nodes of its partitions`,
  );
}

function hasSelection(given: Arguments): boolean {
  return given.value("file") !== undefined || listFilter(given) !== undefined;
}

/** Devices that options select, and the exit status so far. */
interface Selection {
  readonly devices: DeviceRef[];
  readonly status: number;
}

/** Returns the devices that options select. After a failure, named devices are still tried. */
function selectOrReport(given: Arguments): Selection {
  try {
    return select(given);
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    return { devices: [], status: report(error) };
  }
}

function select(given: Arguments): Selection {
  const file = given.value("file");
  const ofFile = file === undefined ? undefined : find(fileOf(file));
  const filter = listFilter(given);
  if (filter === undefined) return selection(given, ofFile ?? []);
  const isOfFile = ({ minor }: LoopDevice): boolean =>
    ofFile === undefined || ofFile.some((found) => found.minor === minor);
  warnOfMissing(given.value("under"));
  const { here, elsewhere, unknown } = listByPlace(filter);
  const left = elsewhere.filter(isOfFile);
  if (left.length > 0) {
    warn(
      `left ${
        pathsOf(left)
      }: the path of the file leads elsewhere here, as for a device of another container; detach it by name if it is yours`,
    );
  }
  const unclear = unknown.filter(isOfFile);
  if (unclear.length > 0) {
    fail(
      `left ${
        pathsOf(unclear)
      }: it is unclear where the file is, because its file system might not answer; detach it by name`,
    );
  }
  const { devices, status } = selection(given, here.filter(isOfFile));
  return { devices, status: unclear.length > 0 ? 1 : status };
}

/** Warns about a directory that does not exist: it may be mistyped, or deleted with its files. */
function warnOfMissing(under: string | undefined): void {
  if (under === undefined) return;
  const stat = statAt(AT_FDCWD, checkPath(fileOf(under)).bytes);
  if (stat !== -ENOENT) return;
  warn(
    `${quote(under)} does not exist: only devices of deleted files can match`,
  );
}

/** Reports a selection that is empty although it names a file or a reference. */
function selection(given: Arguments, devices: LoopDevice[]): Selection {
  const isMissing = devices.length === 0 && !mayBeNone(given);
  if (isMissing) fail(`there is no ${description(given)}`);
  return { devices, status: isMissing ? 1 : 0 };
}

function pathsOf(devices: readonly LoopDevice[]): string {
  return devices.map(({ path }) => path).join(", ");
}

/** Returns `true` if a selection may be empty, because no file or reference names a device. */
function mayBeNone(given: Arguments): boolean {
  return given.value("file") === undefined &&
    given.value("loop-ref") === undefined;
}

/** Describes the selected devices: `device of file "disk.img" with reference "build 7"`. */
function description(given: Arguments): string {
  const [file, reference, under] = ["file", "loop-ref", "under"]
    .map((name) => given.value(name));
  return [
    "device",
    ...file === undefined ? [] : [`of file ${quote(file)}`],
    ...reference === undefined ? [] : [`with reference ${quote(reference)}`],
    ...under === undefined ? [] : [`under ${quote(under)}`],
    ...given.flag("deleted") ? ["whose file is deleted"] : [],
  ].join(" ");
}

function isGone(error: unknown): boolean {
  return error instanceof StaleDeviceError ||
    (error instanceof LoopError && error.errno === ENXIO);
}

/** Prints a device that would be detached, or throws the reason it would not be. */
async function tellOne(device: DeviceRef, ifUnused: boolean): Promise<void> {
  const path = `/dev/loop${minorOf(device)}`;
  const refused = (errno: number, hint: string) =>
    new LoopError(`Cannot detach ${quote(path)}`, {
      errno,
      operation: "detach",
      path,
      hint,
    });
  if (inspect(device) === undefined) {
    throw refused(ENXIO, "no file is attached to it");
  }
  if (ifUnused) {
    const who = describeHolders(await holders(device));
    if (who.length > 0) throw refused(EBUSY, who.join("; "));
  }
  print(path);
}
