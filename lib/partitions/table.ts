/** Reads the partition table of a disk, either GPT or MBR. */
import { isProtective, readBootRecord } from "./boot_record.ts";
import type { ByteSource } from "./byte_source.ts";
import { findGpts, type Gpt, readEntries } from "./gpt.ts";
import { readMbr } from "./mbr.ts";
import { DamagedTable, type TableEntries } from "./table_entry.ts";
import { type Readable, readAhead } from "./read_ahead.ts";

/** A partition table. */
export interface PartitionTable extends TableEntries {
  /** Kind of table. A GPT with a hybrid MBR is a GPT. */
  kind: "gpt" | "mbr";
  /** The sector size the table was written for, in bytes. */
  sectorSize: number;
}

/** Options for reading a table. */
export interface TableOptions {
  /**
   * The sector size of the disk in bytes. By default, a GPT determines its own, and an
   * MBR is read for 512 bytes.
   */
  sectorSize?: number;
}

/** Sector sizes to try for a GPT. */
const SECTOR_SIZES = [512, 1024, 2048, 4096];
const MBR_SECTOR_SIZE = 512;

/**
 * Reads the partition table of a disk.
 *
 * @returns The table, or `undefined` if there is none: a file system without a table,
 * or zeros.
 * @throws {DamagedTable} If there is a table of which nothing can be used.
 */
export function readTable(
  source: ByteSource,
  options: TableOptions = {},
): PartitionTable | undefined {
  const table = readAny(source, options);
  if (table === undefined || table.partitions.length > 0) return table;
  if (table.unusable.length > 0) {
    throw new DamagedTable(describeUnusable(table.unusable));
  }
  return table;
}

/** Maximum number of entries named in a message. */
const MAX_NAMED = 5;

/** Describes unusable entries in one line. */
export function describeUnusable(unusable: readonly string[]): string {
  const rest = unusable.length - MAX_NAMED;
  return [
    ...unusable.slice(0, MAX_NAMED),
    ...rest > 0 ? [`and ${rest} more`] : [],
  ].join("; ");
}

function readAny(
  source: ByteSource,
  options: TableOptions,
): PartitionTable | undefined {
  const record = readBootRecord(source, 0);
  if (record === undefined) return undefined;
  if (isProtective(record)) {
    const gpt = chooseGpt(source, options.sectorSize);
    return {
      kind: "gpt",
      sectorSize: gpt.sectorSize,
      ...readEntries(gpt, source.size),
    };
  }
  const sectorSize = options.sectorSize ?? MBR_SECTOR_SIZE;
  const entries = readMbr(source, record, sectorSize);
  return entries && { kind: "mbr", sectorSize, ...entries };
}

/**
 * Returns the sector size of the GPT of a disk, or `undefined` if there is none or
 * there are several for different sizes. An MBR does not record its sector size.
 */
export function probeSectorSize(source: ByteSource): number | undefined {
  const record = readBootRecord(source, 0);
  if (record === undefined || !isProtective(record)) return undefined;
  const { tables } = findGpts(source, SECTOR_SIZES);
  return tables.length === 1 ? tables[0]!.sectorSize : undefined;
}

function chooseGpt(source: ByteSource, sectorSize?: number): Gpt {
  const sizes = sectorSize === undefined ? SECTOR_SIZES : [sectorSize];
  const { tables, damage } = findGpts(source, sizes);
  const [gpt, ...others] = tables;
  if (gpt !== undefined && others.length === 0) return gpt;
  if (gpt !== undefined) {
    const found = tables.map((table) => table.sectorSize).join(" and ");
    throw new DamagedTable(
      `there are tables for different sector sizes: ${found} bytes`,
    );
  }
  const actual = sectorSize === undefined ? undefined : probeSectorSize(source);
  throw new DamagedTable(
    actual === undefined
      ? damage
      : `the GPT is for sectors of ${actual} bytes, but those of the disk have ${sectorSize}; blockSize: ${actual} (-b ${actual}) attaches it for them`,
  );
}

/** Probes a file or device for the sector size of its table. Does not block the event loop. */
export async function probe(readable: Readable): Promise<number | undefined> {
  return await readAhead(readable, probeSectorSize);
}
