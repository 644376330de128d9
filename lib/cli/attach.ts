import type { LoopDevice } from "../kernel/attached_devices.ts";
import { attach as attachFile, type AttachOptions } from "../attach.ts";
import type { Attachment } from "../attachment.ts";
import { inspect } from "../devices.ts";
import { LoopError, quote } from "../errors.ts";
import { encodeOptions } from "../kernel/configuration.ts";
import { ENXIO } from "../sys/errno.ts";
import {
  type Arguments,
  asUsage,
  optionalBlockSize,
  optionalSize,
  parse,
  parseDeviceNumber,
  UsageError,
} from "./arguments.ts";
import { exact, fileOf } from "./files.ts";
import type { Command, Options } from "./command.ts";
import { report } from "./report.ts";
import { deliver, printJson } from "./output.ts";
import { Interruptible } from "./signals.ts";
import { warnAboutFile } from "./warnings.ts";

/** Options of the commands that attach. */
export const ATTACH_OPTIONS: Options = {
  offset: {
    letter: "o",
    value: "SIZE",
    help: "start at this offset in the file",
  },
  sizelimit: { value: "SIZE", help: "limit the size of the device" },
  "sector-size": {
    letter: "b",
    value: "SIZE",
    help:
      'logical block size: 512, 1024, 2048, 4096 ..., or "probe": the one that the partition table in the file uses',
    choices: ["512", "1024", "2048", "4096", "probe"],
  },
  "read-only": {
    letter: "r",
    help: "attach read-only",
  },
  partscan: { letter: "P", help: "make the partitions appear" },
  "direct-io": {
    help: "bypass the page cache of the file, or fail",
  },
  "loop-ref": {
    value: "NAME",
    help: "keep a name of up to 63 bytes with the device",
  },
  nooverlap: {
    letter: "L",
    help:
      "fail if another device shows any of the bytes, even read-only or attached by another program",
  },
  overlap: {
    help: "allow devices over the same bytes; two writers corrupt the file",
  },
  device: { value: "DEV", help: "use this device and no other" },
  nodes: {
    value: "DIR",
    help:
      "create nodes in DIR, for programs that have none in /dev (containers)",
  },
};

const OPTIONS: Options = {
  ...ATTACH_OPTIONS,
  json: {
    help: 'print {"devices": [...]}, with the fields of list --json',
  },
};

export const command: Command = {
  title: "Attach files to loop devices, which outlive the command.",
  examples: `loopdev attach disk.img                    prints /dev/loop0
dev=$(loopdev attach -r rootfs.squashfs)   read-only
loopdev attach -o 1M --sizelimit 64M disk.img
loopdev attach -P -b 4096 disk.img         partitions; 4 KiB sectors`,
  options: OPTIONS,
  notes:
    `Prints one device per line, in the order of the files. All files are tried; the exit
status is 1 if one failed. Exactly the printed devices stay attached, even if the command
is interrupted; only kill -9 may leave a device that was not printed. --json prints all of
them at the end. With --partscan, the partitions exist when the device is printed, and a
damaged table is an error. Nodes in the DIR of --nodes stay after the detach: remove them,
because they give access to later devices of that number.

Refuses a file whose bytes loopdev shows on another device, unless both are read-only.
Warns about a file that another program has attached, that is compressed or an image of
another format, or that does not end with a whole block. Permissions: deno run
--allow-ffi, and usually root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const files = given.operands.map(fileOf);
  const asked = attachOptions(given, files.length);
  // From here on, a signal aborts waiting. It takes effect only where every device is
  // printed or detached. Only kill -9 can interrupt in between.
  using interruptible = new Interruptible();
  const { signal } = interruptible;
  const options = { ...asked, autoclear: false, signal };

  const asJson = given.flag("json");
  let status = 0;
  const devices: LoopDevice[] = [];
  // Devices are printed all at once at the end. Those that are not printed are detached.
  await using unprinted = new AsyncDisposableStack();
  for (const file of files) {
    try {
      await interruptible.throwIfInterrupted();
      await using attached = new AsyncDisposableStack();
      const attachment = attached.adopt(
        await attachFile(file, options),
        (attachment) => attachment.detach(), // even if it is persistent
      );
      warnAboutFile(attachment.loop, file);
      if (options.partscan) await attachment.partitions({ signal });
      const device = asJson ? listed(attachment) : undefined;
      await attachment.persist();
      await interruptible.throwIfInterrupted();
      if (device === undefined) {
        deliver(attachment.path);
        attached.move(); // the device stays attached
      } else {
        devices.push(device);
        unprinted.use(attached.move());
      }
    } catch (error) {
      status = report(error);
      if (signal.aborted) return status;
    }
  }
  if (asJson) {
    await interruptible.throwIfInterrupted();
    printJson({ devices }, deliver);
    unprinted.move(); // the devices stay attached
  }
  return status;
}

function listed({ minor, path }: Attachment): LoopDevice {
  const device = inspect(minor);
  if (device !== undefined) return { ...device, path };
  throw new LoopError(`Cannot list ${quote(path)}`, {
    errno: ENXIO,
    operation: "open",
    path,
    hint: "another program has detached it",
  });
}

/** Checks the options, and returns them for the library. */
export function attachOptions(
  given: Arguments,
  fileCount: number,
): AttachOptions {
  const isProbed = given.value("sector-size") === PROBE;
  const configuration = {
    offset: optionalSize(given, "offset"),
    sizelimit: optionalSize(given, "sizelimit"),
    blockSize: isProbed ? undefined : optionalBlockSize(given),
    readOnly: given.flag("read-only"),
    // Without the option, any value is accepted.
    partscan: given.flag("partscan") || undefined,
    directIo: given.flag("direct-io") || undefined,
    reference: given.value("loop-ref"),
  };
  asUsage(() => encodeOptions(configuration));
  const [refuses, allows] = [given.flag("nooverlap"), given.flag("overlap")];
  if (refuses && allows) {
    throw new UsageError("--nooverlap and --overlap exclude each other");
  }
  // Checked last, because a FILE may have been taken for the value of a wrong option.
  if (fileCount === 0) throw new UsageError("FILE is missing");
  const device = given.value("device");
  if (device !== undefined && fileCount > 1) {
    throw new UsageError("--device takes one FILE");
  }
  const nodes = given.value("nodes");
  return {
    ...configuration,
    ...(isProbed && { blockSize: PROBE }),
    overlap: refuses ? "refuse" : allows ? "allow" : undefined,
    nodes: nodes === undefined ? undefined : exact(nodes), // it is printed
    minor: device === undefined ? undefined : parseDeviceNumber(device),
  };
}

const PROBE = "probe";
