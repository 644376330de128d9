/**
 * Reads the partition table of an image file, without attaching it. Needs no privileges
 * beyond reading the file.
 */
import { checkPath, type FilePath } from "../arguments.ts";
import { type DeviceRef, locate } from "../device_ref.ts";
import { quote, unwrap } from "../errors.ts";
import { FileDescriptor } from "../kernel/file_descriptor.ts";
import { FoundFile } from "../kernel/found_file.ts";
import { AT_FDCWD, O_NOCTTY, O_NONBLOCK, O_RDONLY } from "../sys/libc.ts";
import { isRegularFile } from "../sys/stat.ts";
import type { Partition } from "./partition.ts";
import { fileSystemOn, readTableOf, type ShownTable } from "./appear.ts";
import { readAhead } from "./read_ahead.ts";

/**
 * Reads the table of a file. Returns `undefined` if the reference does not lead to a
 * regular file.
 */
export async function readImage(
  device: DeviceRef | URL,
  signal?: AbortSignal,
): Promise<ShownTable | undefined> {
  const path = pathIn(device);
  if (path === undefined) return undefined;
  const { text, bytes } = path;
  const found = FoundFile.find(AT_FDCWD, bytes);
  // Opening it as a device reports what is wrong.
  if (typeof found === "number") return undefined;
  using file = found;
  if (!isRegularFile(file.stat)) return undefined;
  const fd = unwrap(file.open(O_RDONLY | O_NONBLOCK | O_NOCTTY), () => ({
    action: `Cannot open ${quote(text)} for reading`,
    operation: "open",
    path: text,
  }));
  using descriptor = new FileDescriptor(fd);
  const size = Number(file.stat.size);
  const name = quote(text);
  const rangeOf = ({ start, size }: { start: number; size: number }) => ({
    fd: descriptor.fd,
    name,
    start,
    size,
    signal,
  });
  const [table, content] = await readAhead(
    rangeOf({ start: 0, size }),
    (source) => {
      const table = readTableOf(source, name, text);
      return [table, table === undefined ? fileSystemOn(source) : {}];
    },
  );
  const partitions: Partition[] = [];
  for (const { isContainer, ...entry } of table?.partitions ?? []) {
    partitions.push({
      ...entry,
      path: partitionPath(text, entry.number),
      ...(!isContainer && await readAhead(rangeOf(entry), fileSystemOn)),
    });
  }
  return {
    size,
    unusable: table?.unusable ?? [],
    partitions,
    ...content,
  };
}

/** Returns the path in a reference to a device or file, unless it is the name of a device. */
function pathIn(device: DeviceRef | URL): FilePath | undefined {
  if (device instanceof URL) return checkPath(device);
  if (typeof device !== "string") return undefined;
  const place = locate(device);
  return "minor" in place ? undefined : place.node;
}

/**
 * Returns the name that the kernel and sfdisk give to a partition: `disk.img1`,
 * `disk2p1`. No such file exists.
 */
function partitionPath(path: string, number: number): string {
  return `${path}${/\d$/.test(path) ? "p" : ""}${number}`;
}
