import { attach as attachFile, type AttachOptions } from "../attach.ts";
import type { Attachment } from "../attachment.ts";
import { attachedDevice, type LoopDevice } from "../devices.ts";
import { LoopError, quote } from "../errors.ts";
import { encodeOptions } from "../kernel/loop.ts";
import { ENXIO } from "../sys/errno.ts";
import {
  type Arguments,
  asUsage,
  optionalSize,
  parse,
  parseDeviceNumber,
  parseSize,
  UsageError,
} from "./arguments.ts";
import { fileOf } from "./files.ts";
import type { Command, Options } from "./command.ts";
import { report } from "./report.ts";
import { print, printJson } from "./output.ts";
import { warnOfRest } from "./warnings.ts";

/** The options of the commands that attach. */
export const ATTACH_OPTIONS: Options = {
  offset: { letter: "o", value: "SIZE", help: "begin there in the file" },
  sizelimit: { value: "SIZE", help: "at most so large" },
  "sector-size": {
    letter: "b",
    value: "SIZE",
    help:
      "logical block size: 512, 1024, 2048, 4096 ...; or probe: that of the partition table in the file",
    choices: ["512", "1024", "2048", "4096", "probe"],
  },
  "read-only": {
    letter: "r",
    help: "nobody can write through the device",
  },
  partscan: { letter: "P", help: "have the kernel look for partitions" },
  "direct-io": {
    help: "bypass the page cache of the file; fails where it cannot",
  },
  "loop-ref": {
    value: "NAME",
    help: "a name of at most 63 bytes to keep with the device",
  },
  nooverlap: {
    letter: "L",
    help: "fail when some of the bytes are behind a device already",
  },
  device: { value: "DEV", help: "this device, and no other" },
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
    `Prints one device a line, in the order of the files. All files are tried; the exit
status is 1 when one failed. Permissions: deno run --allow-ffi, and mostly root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const files = given.operands.map(fileOf);
  const options = { ...attachOptions(given, files.length), autoclear: false };

  const asJson = given.flag("json");
  let status = 0;
  const devices: LoopDevice[] = [];
  // Detached at the end, unless it was printed: a device that nobody knows of is lost.
  await using attached = new AsyncDisposableStack();
  const printed: Attachment[] = [];
  for (const file of files) {
    try {
      const attachment = attached.use(await attachFile(file, options));
      warnOfRest(attachment.loop, file);
      if (asJson) devices.push(listed(attachment));
      else print(attachment.path);
      printed.push(attachment);
    } catch (error) {
      status = report(error);
    }
  }
  if (asJson) printJson({ devices });
  for (const attachment of printed) await attachment.persist();
  return status;
}

function listed({ minor, path }: Attachment): LoopDevice {
  const device = attachedDevice(minor);
  // Where /dev has no node, list() still names the one that it should have.
  if (device !== undefined) return { ...device, path };
  throw new LoopError(`Cannot list ${quote(path)}`, {
    errno: ENXIO,
    operation: "open",
    path,
    hint: "it was detached meanwhile",
  });
}

/** The options for the library, checked. */
export function attachOptions(
  given: Arguments,
  fileCount: number,
): AttachOptions {
  if (fileCount === 0) throw new UsageError("FILE is missing");
  const device = given.value("device");
  if (device !== undefined && fileCount > 1) {
    throw new UsageError("--device takes one FILE");
  }
  const sectorSize = given.value("sector-size");
  const configuration = {
    offset: optionalSize(given, "offset"),
    sizelimit: optionalSize(given, "sizelimit"),
    blockSize: sectorSize === undefined || sectorSize === PROBE
      ? undefined
      : Number(parseSize(sectorSize, "sector size")),
    readOnly: given.flag("read-only"),
    // Not given is not "off": then it need not be.
    partscan: given.flag("partscan") || undefined,
    directIo: given.flag("direct-io") || undefined,
    reference: given.value("loop-ref"),
  };
  asUsage(() => encodeOptions(configuration));
  return {
    ...configuration,
    ...(sectorSize === PROBE && { blockSize: PROBE }),
    overlap: given.flag("nooverlap") ? "refuse" : "lock",
    minor: device === undefined ? undefined : parseDeviceNumber(device),
  };
}

const PROBE = "probe";
