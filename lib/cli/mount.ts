import { attach } from "../attach.ts";
import { mount as mountDevice } from "../mount.ts";
import { checkMountOptions, type MountOptions } from "../mounting/options.ts";
import { findSource } from "../mounting/source.ts";
import { checkPath } from "../arguments.ts";
import { minorInName } from "../device_ref.ts";
import { findPrivateDirectory } from "../kernel/left_nodes.ts";
import { AT_FDCWD, cString } from "../sys/libc.ts";
import { statAt } from "../sys/stat.ts";
import {
  type Arguments,
  asUsage,
  pair,
  parse,
  UsageError,
} from "./arguments.ts";
import { ATTACH_OPTIONS, attachOptions } from "./attach.ts";
import type { Command, Options } from "./command.ts";
import { bytesOf, fileOf } from "./files.ts";
import { printPath } from "./output.ts";
import { Interruptible } from "./signals.ts";
import { warnAboutFile } from "./warnings.ts";
import { inWordsOfFile } from "./words.ts";

/** Options of the commands that mount. */
export const MOUNT_OPTIONS: Options = {
  partition: {
    letter: "p",
    value: "N|NAME",
    help: "mount this partition, by its number or its name in a GPT",
  },
  type: {
    letter: "t",
    value: "TYPE",
    help: "type of the file system, instead of the one in its superblock",
  },
  options: {
    letter: "O",
    value: "LIST",
    help:
      "mount options, separated by commas: noexec, noatime, suid, dev, and those of the file system",
  },
};

const OPTIONS: Options = { ...MOUNT_OPTIONS, ...ATTACH_OPTIONS };

export const command: Command = {
  title: "Mount the file system of an image or a device on a directory.",
  examples: `loopdev mount disk.img /mnt
loopdev mount --partition 2 disk.img /mnt
loopdev mount -p root -r disk.img /mnt     by its name, read-only
loopdev mount -r -O noload dirty.img /mnt  without replaying its journal
loopdev unmount /mnt`,
  options: OPTIONS,
  notes:
    `A file is attached first, with the sector size of its GPT unless --sector-size is given,
and detached when DIR is unmounted. A loop device or a partition is mounted as it is.
Without --partition, the file system on the whole device is mounted, or the only one on its
partitions. The superblock determines the type. With --read-only, the file is also attached
read-only, so that no journal is replayed. Programs run without set-user-ID, and device
nodes cannot be opened, unless --options has suid or dev.

Prints DIR. If the command fails or is interrupted, nothing is mounted or attached. For a
mount that no crash can leave behind, see loopdev run --mount. Permissions: deno run
--allow-ffi, and root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  const [source, directory] = pair(given.operands, "FILE or DEV", "DIR");
  if (/^[a-z]/i.test(given.value("offset") ?? "")) {
    throw new UsageError("-o is the offset in FILE; mount options are for -O");
  }
  const asked = mountOptions(given);
  const readOnly = given.flag("read-only") || asked.readOnly;
  const attaching = { ...attachOptions(given, 1), readOnly: readOnly ?? false };
  using interruptible = new Interruptible();
  const { signal } = interruptible;
  const options = { ...asked, readOnly, target: fileOf(directory), signal };
  await using unfinished = new AsyncDisposableStack();
  const device = deviceOf(source);
  if (device === undefined) {
    const file = fileOf(source);
    const blockSize = attaching.blockSize ?? "probe";
    const attached = await attach(file, { ...attaching, blockSize, signal });
    unfinished.use(attached);
    warnAboutFile(attached.loop, file);
    unfinished.use(
      await attached.mount(options).catch((error) => {
        throw inWordsOfFile(error, attached.path, file);
      }),
    );
  } else {
    refuseAttachOptions(given);
    unfinished.use(
      await mountDevice(device, options).catch((error) => {
        // Only the source tells that it has no partitions.
        if (error instanceof TypeError) throw new UsageError(error.message);
        throw error;
      }),
    );
  }
  await interruptible.throwIfInterrupted();
  printPath(bytesOf(options.target));
  unfinished.move(); // the file system stays mounted
  return 0;
}

function refuseAttachOptions(given: Arguments): void {
  const name = Object.keys(ATTACH_OPTIONS).find((name) =>
    name !== "read-only" && given.value(name) !== undefined
  );
  if (name === undefined) return;
  throw new UsageError(`--${name} is for a FILE, and this is a device`);
}

/** Returns the path of a loop device or a partition, or `undefined` for a file. */
function deviceOf(source: string): string | URL | undefined {
  const minor = minorInName(/^\d+$/.test(source) ? `loop${source}` : source);
  if (minor !== undefined) return nodeOf(minor);
  const path = fileOf(source);
  using found = findSource(checkPath(path));
  return found === undefined ? undefined : path;
}

/** Returns the path of a node of a device, which is private if `/dev` has none. */
function nodeOf(minor: number): string {
  const name = `loop${minor}`;
  const path = `/dev/${name}`;
  if (typeof statAt(AT_FDCWD, cString(path)) !== "number") return path;
  const found = findPrivateDirectory((names) => names.includes(name));
  if (found === undefined) return path;
  found.descriptor.close();
  return `${found.path}/${name}`;
}

/** Checks the options, and returns them for the library. */
export function mountOptions(given: Arguments): MountOptions {
  const partition = given.value("partition");
  const options = {
    partition: partition !== undefined && /^\d+$/.test(partition)
      ? Number(partition)
      : partition,
    type: given.value("type"),
    ...parseList(given.value("options") ?? ""),
  };
  asUsage(() => checkMountOptions(options));
  return options;
}

/** Options of mount(8) that apply to the mount and not to the file system. */
const WORDS: Readonly<Record<string, MountOptions>> = {
  defaults: {},
  ro: { readOnly: true },
  rw: { readOnly: false },
  suid: { noSuid: false },
  nosuid: { noSuid: true },
  dev: { noDev: false },
  nodev: { noDev: true },
  exec: { noExec: false },
  noexec: { noExec: true },
  atime: { noAtime: false },
  noatime: { noAtime: true },
};

function parseList(list: string): MountOptions {
  let result: MountOptions = {};
  const options: Record<string, string | true> = {};
  for (const item of list.split(",").filter((item) => item !== "")) {
    if (Object.hasOwn(WORDS, item)) result = { ...result, ...WORDS[item] };
    else {
      const [key = "", ...value] = item.split("=");
      if (Object.hasOwn(WORDS, key)) {
        throw new UsageError(`the option ${key} of --options takes no value`);
      }
      options[key] = item.includes("=") ? value.join("=") : true;
    }
  }
  return { ...result, options };
}
