/**
 * Compares the library with the kernel's parsers on odd partition tables. A kernel may be
 * built without parsers; Debian's kernels have them.
 */
import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { DamagedTable } from "../../lib/partitions/table_entry.ts";
import { readTable } from "../../lib/partitions/table.ts";
import {
  attribute,
  isSoon,
  losetupDetach,
  onDevices,
  runOk,
  Scratch,
  unless,
  withScratch,
} from "../device/support.ts";
import { ODD_IMAGES } from "../unit/odd_images.ts";
import { memory } from "../unit/partition_images.ts";

const SECTOR = 512;

/** A partition: its number, start and size. The latter two are in sectors. */
type Row = `${number}: ${number}+${number}`;

/** Size that the kernel shows for an extended partition, in sectors: enough for a boot loader. */
const EXTENDED_SIZE = 2;
const EXTENDED_TYPES = ["0x5", "0xf", "0x85"];

/** Images with a table only in the backup, which the library and partx read. The kernel needs `gpt` on its command line. */
const IN_BACKUP = [
  "GPT: primary bad",
  "GPT: primary without a signature",
  "GPT: grown, primary bad",
];

/** Returns the partitions that the library reads in an image, as the kernel would show them. */
function ours(image: Uint8Array): Row[] {
  try {
    return (readTable(memory(image))?.partitions ?? [])
      .map(({ number, start, size, type }) => {
        const sectors = EXTENDED_TYPES.includes(type)
          ? EXTENDED_SIZE
          : size / SECTOR;
        return `${number}: ${start / SECTOR}+${sectors}` as const;
      });
  } catch (error) {
    if (error instanceof DamagedTable) return [];
    throw error;
  }
}

/** Returns the partitions that the kernel shows for a device. */
function kernels(name: string): Row[] {
  const numbers = [...Deno.readDirSync(`/sys/block/${name}`)]
    .map((entry) => Number(/^loop\d+p(\d+)$/.exec(entry.name)?.[1]))
    .filter((number) => !Number.isNaN(number))
    .sort((a, b) => a - b);
  return withoutRepeats(numbers.map((number): Row => {
    const [start, size] = ["start", "size"]
      .map((it) => Number(attribute(name, `${name}p${number}/${it}`)));
    return `${number}: ${start!}+${size!}`;
  }));
}

/** Waits until the kernel shows the wanted partitions, or until time is up. Returns those it shows. */
function settled(name: string, wanted: Row[], patience: number): Row[] {
  let found: Row[] = [];
  isSoon(() => {
    // udev makes the kernel rescan, which removes the partitions and adds them again.
    try {
      found = kernels(name);
    } catch (error) {
      if (!/No such (file|device)/.test(`${error}`)) throw error;
      return false;
    }
    return `${found}` === `${wanted}`;
  }, patience);
  return found;
}

/** Removes repeated partitions. The kernel follows circular links up to 255 partitions; the library and partx show each one once. */
function withoutRepeats(rows: Row[]): Row[] {
  const extents = rows.map((row) => row.split(": ")[1]);
  return rows.filter((_, index) => extents.indexOf(extents[index]) === index);
}

function attached(
  scratch: Scratch,
  image: Uint8Array,
  wanted: Row[],
  patience = 10_000,
): Row[] {
  const file = `${scratch.path}/disk.img`;
  Deno.writeFileSync(file, image);
  const path = runOk("losetup", "--find", "--show", "--partscan", file);
  try {
    return settled(path.replace("/dev/", ""), wanted, patience);
  } finally {
    losetupDetach(path);
  }
}

/** Returns the reason there is nothing to compare with, or `undefined`. */
function findReason(): string | undefined {
  if (onDevices.ignore) return "there are no loop devices";
  using scratch = new Scratch();
  const hasParsers = ["MBR: nothing odd", "GPT: nothing odd"].every((name) => {
    const image = ODD_IMAGES[name]!;
    return attached(scratch, image, ours(image), 500).length > 0;
  });
  return hasParsers ? undefined : "this kernel reads no partition tables";
}

describe("readTable()", onDevices, () => {
  it(
    ...unless(findReason(), "equals the kernel's parsers for odd tables"),
    withScratch((scratch) => {
      const expected: Record<string, Row[]> = {};
      const actual: Record<string, Row[]> = {};
      for (const [name, image] of Object.entries(ODD_IMAGES)) {
        actual[name] = IN_BACKUP.includes(name) ? [] : ours(image);
        expected[name] = attached(scratch, image, actual[name]);
      }
      assertEquals(actual, expected);
    }),
  );
});
