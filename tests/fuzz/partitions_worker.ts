/** Damages partition tables, reads them and checks the results, in a worker. */
import type { ByteSource } from "../../lib/partitions/byte_source.ts";
import {
  type PartitionTable,
  probeSectorSize,
  readTable,
} from "../../lib/partitions/table.ts";
import {
  DamagedTable,
  type TableEntry,
} from "../../lib/partitions/table_entry.ts";
import {
  gptImage,
  gptLayout,
  type GptParts,
  headerOf,
  logicalParts,
  mbrImage,
  memory,
  seal,
  viewOf,
  writeBootRecord,
  writeFatBootSector,
} from "../unit/partition_images.ts";

/**
 * Time limit for a table in milliseconds. Reading takes less than one, but the machine
 * may be busy.
 */
const TIME_LIMIT = 2000;
/** Maximum number of reads for a table: the longest chains, and some more. */
const READ_LIMIT = 400;

/** Pseudorandom numbers from a seed (mulberry32). */
class Random {
  #state: number;

  constructor(seed: number) {
    // Adjacent seeds must not give similar numbers.
    this.#state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b);
    this.below(2);
  }

  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 2 ** 32 * limit);
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!;
  }
}

/** A disk to damage: its fields and its checksums. */
interface Base {
  image: Uint8Array;
  /** Ranges of the table: offset and length. */
  areas: [number, number][];
  /** Fields of headers, entries and slots: offset and size. */
  fields: [number, number][];
  /** The sector size of a GPT. */
  sectorSize?: number;
}

function gptBase(parts: GptParts): Base {
  const { entrySize = 128 } = parts;
  const layout = gptLayout(parts);
  const { sectorSize, lastSector, arraySectors, firstUsable } = layout;
  parts.partitions ??= [
    { first: firstUsable, last: firstUsable, name: "one" },
    { first: firstUsable + 1, last: layout.lastUsable, name: "two" },
  ];
  const image = gptImage(parts);
  const fields: [number, number][] = slotFields(0);
  const areas: [number, number][] = [[0, 512]];
  const copies = [[1, 2], [lastSector, lastSector - arraySectors]] as const;
  for (const [header, array] of copies) {
    const at = header * sectorSize;
    areas.push([at, 92], [array * sectorSize, 3 * entrySize]);
    fields.push([at + 8, 4], [at + 12, 4], [at + 16, 4], [at + 80, 4]);
    fields.push([at + 84, 4], [at + 88, 4]);
    for (const offset of [24, 32, 40, 48, 72]) fields.push([at + offset, 8]);
    for (let index = 0; index < 3; index++) {
      const entry = array * sectorSize + index * entrySize;
      fields.push([entry, 8], [entry + 32, 8], [entry + 40, 8]);
    }
  }
  return { image, areas, fields, sectorSize };
}

function mbrBase(
  image: Uint8Array,
  sectors: number[],
  sectorSize = 512,
): Base {
  const records = sectors.map((sector) => sector * sectorSize);
  return {
    image,
    areas: records.map((at) => [at + 440, 72]),
    fields: records.flatMap(slotFields),
  };
}

function slotFields(record: number): [number, number][] {
  return [0, 1, 2, 3].flatMap((index): [number, number][] => {
    const at = record + 446 + index * 16;
    return [[at, 1], [at + 4, 1], [at + 8, 4], [at + 12, 4]];
  });
}

function makeBases(): Base[] {
  const many = Array.from({ length: 255 }, (_, index) => ({
    first: 66 + index,
    last: 66 + index,
  }));
  const hybrid = gptBase({ size: 64 << 10 });
  writeBootRecord(hybrid.image, 0, [
    { start: 34, count: 1, bootFlag: 0x80 },
    { type: 0xee, start: 1, count: 33 },
  ]);
  const vfat = mbrImage({ size: 64 << 10 });
  writeFatBootSector(vfat);
  const logicals = { ...logicalParts(), size: 800 << 10 };
  const hybridIso = mbrImage({
    size: 64 << 10,
    slots: [
      { start: 0, count: 100, type: 0, bootFlag: 0x80 },
      { start: 50, count: 9, type: 0xef },
      { start: 100, count: 100 },
    ],
  });
  const osTwo = { ...logicalParts(), size: 800 << 10 };
  osTwo.records![1]!.slots.push({ start: 210, count: 20 });
  return [
    gptBase({ size: 64 << 10 }),
    gptBase({ size: 128 << 10, sectorSize: 1024 }),
    gptBase({ size: 128 << 10, sectorSize: 2048 }),
    gptBase({ size: 128 << 10, sectorSize: 4096 }),
    gptBase({ size: 64 << 10, entryCount: 16, entrySize: 256 }),
    gptBase({ size: 256 << 10, entryCount: 256, partitions: many }),
    gptBase({ size: 64 << 10, partitions: [] }),
    hybrid,
    mbrBase(mbrImage(logicals), [0, 256, 512, 768]),
    mbrBase(
      mbrImage({ size: 64 << 10, slots: [{ start: 1, count: 127 }] }),
      [0],
    ),
    mbrBase(vfat, [0]),
    mbrBase(hybridIso, [0]),
    mbrBase(mbrImage(osTwo), [0, 256, 512, 768]),
    gptBase({
      size: 64 << 10,
      partitions: [
        { first: 34, last: 60 },
        { first: 50, last: 40 },
        { first: 20, last: 200 },
        { number: 100, first: 60, last: 61 },
      ],
    }),
  ];
}

/** Returns a damaged copy of a disk, and whether its checksums were corrected. */
function damage(
  base: Base,
  random: Random,
): { image: Uint8Array; isSealed: boolean } {
  let image: Uint8Array = base.image.slice();
  const times = 1 + random.below(6);
  for (let time = 0; time < times; time++) {
    if (random.below(3) > 0) changeField(image, base, random);
    else changeByte(image, base, random);
  }
  if (random.below(10) === 0) image = resize(image, random);
  const isSealed = base.sectorSize !== undefined && random.below(8) > 0;
  if (isSealed) sealBoth(image, base.sectorSize!, random);
  return { image, isSealed };
}

function changeField(image: Uint8Array, base: Base, random: Random): void {
  const [at, size] = random.pick(base.fields);
  const view = viewOf(image);
  const sectorSize = base.sectorSize ?? 512;
  const sectors = Math.floor(image.length / sectorSize);
  const values = [
    0,
    1,
    2,
    5,
    15,
    128,
    random.below(sectors),
    random.below(sectors),
    sectors - 1,
    sectors,
    random.below(2 ** 32),
    2 ** 31,
    2 ** 32 - 1,
    0x83,
    0xee,
  ];
  const value = random.pick(values);
  if (size === 1) view.setUint8(at, value);
  else if (size === 4) view.setUint32(at, value, true);
  else {
    const high = random.pick([0n, 0n, 0n, 0n, 1n, 2n ** 31n, 2n ** 32n - 1n]);
    view.setBigUint64(at, (high << 32n) + BigInt(value), true);
  }
}

function changeByte(image: Uint8Array, base: Base, random: Random): void {
  const [at, length] = random.pick(base.areas);
  image[at + random.below(length)] = random.below(256);
}

function resize(image: Uint8Array, random: Random): Uint8Array {
  const size = random.pick([
    random.below(image.length),
    random.below(2048),
    image.length - 1,
    image.length + random.below(8192),
  ]);
  const resized = new Uint8Array(size);
  resized.set(image.subarray(0, size));
  return resized;
}

/**
 * Corrects the checksums, usually of both copies, and usually also the headers' own
 * sectors.
 */
function sealBoth(
  image: Uint8Array,
  sectorSize: number,
  random: Random,
): void {
  const last = Math.floor(image.length / sectorSize) - 1;
  for (const sector of [1, last]) {
    if (sector < 1 || sector > last || random.below(8) === 0) continue;
    const header = headerOf(image, sectorSize, sector);
    if (random.below(8) > 0) header.setBigUint64(24, BigInt(sector), true);
    seal(image, sectorSize, sector);
  }
}

/** Returns a source that throws after too many reads. */
function counted(image: Uint8Array): ByteSource {
  const source = memory(image);
  let reads = 0;
  return {
    size: source.size,
    read(offset, length): Uint8Array {
      reads++;
      if (reads > READ_LIMIT) throw new Error("it was read too often");
      return source.read(offset, length);
    },
  };
}

function fail(text: string): never {
  throw new Error(text);
}

/** Checks properties of every table, whatever the disk. */
function checkTable(
  { kind, sectorSize, partitions, unusable }: PartitionTable,
  size: number,
): void {
  if (partitions.length === 0 && unusable.length > 0) fail("nothing is left");
  for (const fault of unusable) {
    if (!/^partition [^\n\0]{10,300}$/.test(fault)) fail(fault);
  }
  if (partitions.length > 255) fail(`${partitions.length} partitions`);
  let before = 0;
  for (const partition of partitions) {
    const { number, start, size: length, type, uuid, name } = partition;
    const text = JSON.stringify(partition);
    if (!(number > before && number <= 255)) fail(`number: ${text}`);
    before = number;
    for (const value of [start / sectorSize, length / sectorSize]) {
      if (!Number.isSafeInteger(value)) fail(`not in sectors: ${text}`);
    }
    if (!(start >= 0 && length > 0 && start + length <= size)) {
      fail(`not on the disk of ${size} bytes: ${text}`);
    }
    const [types, uuids] = kind === "gpt"
      ? [/^[0-9A-F]{8}(-[0-9A-F]{4}){4}[0-9A-F]{8}$/, /^[0-9A-F-]{36}$/]
      : [/^0x(0|[1-9a-f][0-9a-f]?)$/, /^[0-9a-f]{8}-[0-9a-f]{2}$/];
    if (!types.test(type)) fail(`type: ${text}`);
    if (uuid !== undefined && !uuids.test(uuid)) fail(`uuid: ${text}`);
    const { problem } = partition;
    if (problem !== undefined && !/^[a-z][^\n\0]{8,600}$/.test(problem)) {
      fail(`problem: ${text}`);
    }
    if (name !== undefined && !/^[^\0]{1,36}$/s.test(name)) {
      fail(`name: ${text}`);
    }
  }
  checkOverlaps(partitions);
}

/** Checks that both of two overlapping partitions report it. */
function checkOverlaps(partitions: TableEntry[]): void {
  for (const a of partitions) {
    for (const b of partitions) {
      if (b.number <= a.number) continue;
      const isApart = a.start + a.size <= b.start ||
        b.start + b.size <= a.start;
      const mayNest = (a.isContainer || b.isContainer) && b.number >= 5;
      const areTold = [a, b].every(({ problem = "" }) =>
        problem.includes("overlaps")
      );
      if (!isApart && !mayNest && !areTold) {
        fail(`overlap: ${JSON.stringify([a, b])}`);
      }
    }
  }
}

/** Returns the kind of result in a word, and whether the checksums had been corrected. */
function readOne(
  bases: Base[],
  seed: number,
): { outcome: string; isSealed: boolean } {
  const random = new Random(seed);
  const base = random.pick(bases);
  const { image, isSealed } = damage(base, random);
  const sectorSize = random.pick([undefined, undefined, 512, 4096]);
  const probed = probeSectorSize(counted(image));
  if (probed !== undefined && ![512, 1024, 2048, 4096].includes(probed)) {
    fail(`probed ${probed}`);
  }
  return { outcome: outcomeOf(image, sectorSize), isSealed };
}

function outcomeOf(image: Uint8Array, sectorSize?: number): string {
  try {
    const table = readTable(
      counted(image),
      sectorSize === undefined ? {} : { sectorSize },
    );
    if (table === undefined) return "no table";
    checkTable(table, image.length);
    return table.kind;
  } catch (error) {
    if (!(error instanceof DamagedTable)) throw error;
    if (!/^[a-z][^\n\0]{10,}$/.test(error.message)) fail(error.message);
    return "damaged";
  }
}

/** Task of the worker. */
export interface Task {
  count: number;
  seed: number;
  /** Shared array in which the worker reports the current table. */
  progress: Int32Array;
}

/** Result of the worker. */
export interface Result {
  /** Number of tables for each kind of result. */
  outcomes: Map<string, number>;
  /** Number of tables whose checksums were corrected after the damage. */
  sealed: number;
  /** Longest time for a table, in milliseconds. */
  slowest: number;
  violations: string[];
}

function readAll({ count, seed, progress }: Task): Result {
  const bases = makeBases();
  const outcomes = new Map<string, number>();
  const violations: string[] = [];
  let sealed = 0;
  let slowest = 0;
  for (let index = 0; index < count; index++) {
    Atomics.store(progress, 0, index);
    const start = performance.now();
    let outcome = "VIOLATION";
    try {
      const read = readOne(bases, seed + index);
      outcome = read.outcome;
      if (read.isSealed) sealed++;
    } catch (error) {
      violations.push(`seed ${seed + index}: ${(error as Error).stack}`);
    }
    const time = performance.now() - start;
    slowest = Math.max(slowest, time);
    if (time > TIME_LIMIT) {
      violations.push(`seed ${seed + index}: ${Math.round(time)} ms`);
    }
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
  }
  return { outcomes, sealed, slowest, violations };
}

/**
 * The worker's side of its messages: the types of the main side are those of a window.
 */
interface WorkerScope {
  onmessage: (event: MessageEvent<Task>) => void;
  postMessage(message: Result): void;
}

const scope = self as unknown as WorkerScope;
scope.onmessage = ({ data }) => scope.postMessage(readAll(data));
