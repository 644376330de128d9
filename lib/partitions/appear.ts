/**
 * Creates the partitions of a device, even if the kernel cannot read the table or udev
 * is missing.
 */
import {
  fileMark,
  hasLargeCache,
  isErrno,
  retryWhileHeld,
  writeBackInBackground,
} from "../attaching/release.ts";
import { recycled } from "../device_ref.ts";
import { LoopError, quote, StaleDeviceError, unwrap } from "../errors.ts";
import type { Loop } from "../kernel/loop.ts";
import {
  extentOf,
  type KernelPartition,
  partitionsOf,
  rdevOfPartition,
} from "../kernel/loop_sysfs.ts";
import {
  type NodeDirectory,
  type NodeOwner,
  openDevNode,
} from "../kernel/node_directory.ts";
import { addPartition, resizePartition } from "../sys/blk_uapi.ts";
import {
  EACCES,
  EBUSY,
  EINVAL,
  ENOENT,
  ENXIO,
  EPERM,
  ETIMEDOUT,
  EUCLEAN,
} from "../sys/errno.ts";
import { closeAsync } from "../sys/libc.ts";
import { LO_FLAGS_PARTSCAN } from "../sys/loop_uapi.ts";
import { type FileSystem, recognize } from "../mounting/recognize.ts";
import { abortable, pollUntil, Slices, type WaitOptions } from "../waiting.ts";
import type { ByteSource } from "./byte_source.ts";
import { makeRoom } from "./make_room.ts";
import {
  doNodesAppear,
  findNodes,
  makeOwnNodes,
  shareNodes,
} from "./own_nodes.ts";
import type { Partition } from "./partition.ts";
import { readAhead } from "./read_ahead.ts";
import { type PartitionTable, readTable } from "./table.ts";
import {
  addProblem,
  DamagedTable,
  isSlice,
  shownExtent,
  type TableEntry,
} from "./table_entry.ts";

/** Result of creating the partitions of a table. */
export interface ShownTable {
  /** The size of the device or file in bytes. */
  size: number;
  /** The partitions. */
  partitions: Partition[];
  /** Content of a disk without a table. */
  fileSystem?: FileSystem;
  /** Faults of entries that no kernel can show, one line each. */
  unusable: string[];
}

/** A table with the damage that prevents reading it. */
export interface FoundTable extends ShownTable {
  /** Reason why the table cannot be read. */
  damage?: string;
}

/** Creates the partitions of an open device and describes them. */
export async function showTable(
  loop: Loop,
  waiting: WaitOptions,
  owner?: NodeOwner,
): Promise<ShownTable> {
  using showing = new Showing(loop, owner, waiting.signal);
  await showing.read();
  // The kernel scans before we do, and removes its partitions on detaching.
  let isFirst = await showing.turnPartscanOn(waiting);
  // A scan caused by another process removes and restores all of them.
  const looks = await pollUntil(async () => {
    if (!isFirst) await showing.readAgain();
    isFirst = false;
    if (await showing.look(waiting)) return true;
    if (!showing.hasChanged) return false;
    // What was added is there at once, even if there is no time left to wait.
    await showing.readAgain();
    return await showing.look(waiting);
  }, waiting);
  if (looks === undefined) throw showing.timedOut();
  return showing.outcome(showing.result());
}

/**
 * Returns the partitions that the kernel has for an open device, with what the table says
 * about them. Leaves the device as it is.
 */
export async function lookAt(loop: Loop): Promise<FoundTable> {
  using showing = new Showing(loop, undefined);
  let damage: string | undefined;
  try {
    await showing.read();
  } catch (error) {
    if (!(error instanceof LoopError) || error instanceof StaleDeviceError) {
      throw error;
    }
    damage = error.message;
  }
  return {
    ...showing.outcome(await showing.present()),
    ...(damage !== undefined && { damage }),
  };
}

/**
 * Recognizes the file system in a range, as a property to spread. Empty if it cannot be
 * read.
 */
export function fileSystemOn(
  source: ByteSource,
): { fileSystem?: FileSystem } {
  const fileSystem = recognizeIn(source);
  return fileSystem === undefined ? {} : { fileSystem };
}

function recognizeIn(source: ByteSource): FileSystem | undefined {
  try {
    return recognize(source);
  } catch (error) {
    if (error instanceof LoopError) return undefined;
    throw error;
  }
}

/** Reads a table for a caller of the library. */
export function readTableOf(
  source: ByteSource,
  name: string,
  path: string,
  sectorSize?: number,
): PartitionTable | undefined {
  try {
    return readTable(source, sectorSize === undefined ? {} : { sectorSize });
  } catch (error) {
    if (!(error instanceof DamagedTable)) throw error;
    throw new LoopError(`Cannot read the partition table of ${name}`, {
      errno: EUCLEAN,
      operation: "pread",
      path,
      hint: error.message,
    });
  }
}

/** A partition as the kernel has it. */
interface KnownPartition extends KernelPartition {
  readonly start: number;
  readonly size: number;
}

/** The partitions of one device while they are being created. */
class Showing implements Disposable {
  readonly #loop: Loop;
  /** The attachment, if it was this process that attached the device. */
  readonly #owner: NodeOwner | undefined;
  readonly #signal: AbortSignal | undefined;
  /** Nodes shared with other processes, if there is no attachment. */
  readonly #shared: NodeOwner = {
    nodes: undefined,
    isDetached: false,
    hasPartitions: false,
  };
  /** Identity of the file whose partitions they are. */
  readonly #file: number | string;
  #size = 0;
  #sectorSize = 0;
  /** The table of the disk, if its format is known. */
  #table: PartitionTable | undefined;
  /** The file system of a disk without a table. */
  #content: { fileSystem?: FileSystem } = {};
  /** Partitions that the kernel refuses to add. */
  readonly #refused = new Set<number>();
  /** Partitions in use that are no longer in the table. */
  readonly #left = new Set<number>();
  readonly #fileSystems = new Map<number, FileSystem | undefined>();
  #known: KnownPartition[] = [];
  #missing: string[] = [];
  /** `true` if `/dev` has no node for a partition. */
  #lacksNodes = false;
  /** `true` if the last look changed partitions, so that another one finds them. */
  hasChanged = false;

  constructor(
    loop: Loop,
    owner: NodeOwner | undefined,
    signal?: AbortSignal,
  ) {
    this.#loop = loop;
    this.#owner = owner;
    this.#signal = signal;
    this.#file = fileMark(loop);
  }

  /** Closes the directory of shared nodes, which stay. */
  [Symbol.dispose](): void {
    this.#shared.nodes?.close();
  }

  get #nodes(): NodeDirectory | undefined {
    return (this.#owner ?? this.#shared).nodes;
  }

  /** Reads the table on another thread. */
  async read(): Promise<void> {
    this.#size = this.#loop.getSize();
    this.#sectorSize = this.#loop.getBlockSize();
    const { fd, path } = this.#loop;
    const name = quote(path);
    const damage = await readAhead(
      { fd, start: 0, size: this.#size, name, signal: this.#signal },
      (source) => {
        let damage: LoopError | undefined;
        this.#table = undefined;
        try {
          this.#table = readTableOf(source, name, path, this.#sectorSize);
        } catch (error) {
          if (!(error instanceof LoopError)) throw error;
          damage = error;
        }
        this.#content = this.hasTable ? {} : fileSystemOn(source);
        return damage;
      },
    );
    this.#checkBinding();
    if (damage !== undefined) throw damage;
  }

  /** Reads the table of the same binding again, after other processes could run. */
  async readAgain(): Promise<void> {
    this.#checkBinding();
    await this.read();
  }

  /** `true` if there is a table of a known format. */
  get hasTable(): boolean {
    return this.#table !== undefined;
  }

  get #entries(): readonly TableEntry[] {
    return this.#table?.partitions ?? [];
  }

  /** Returns the result for the table. */
  outcome(partitions: Partition[]): ShownTable {
    return {
      size: this.#size,
      partitions,
      unusable: this.#table?.unusable ?? [],
      ...this.#content,
    };
  }

  /**
   * Throws if another process exchanged the file during the wait, or detached it and
   * attached another.
   */
  #checkBinding(): void {
    if (fileMark(this.#loop) === this.#file) return;
    throw recycled("show the partitions of", this.#loop.path);
  }

  /**
   * Turns partscan on, unless the disk or a partition is held exclusively: partitions
   * are also added here. Returns `true` if that took no time, so that the table that
   * was read is current.
   */
  async turnPartscanOn(waiting: WaitOptions): Promise<boolean> {
    const hasWaited = await this.#writeBack();
    let tries = 0;
    try {
      await retryWhileHeld(async () => {
        // A process that held the device may have written to it.
        if (++tries > 1) await this.#writeBack();
        if (this.#mayScan) this.#loop.setStatus({ partscan: true });
      }, waiting);
    } catch (error) {
      if (!isErrno(error, EBUSY)) throw error;
    }
    return tries <= 1 && !hasWaited;
  }

  /**
   * `false` if the kernel would find no table, and remove partitions that other
   * processes have added.
   */
  get #mayScan(): boolean {
    return this.hasTable || partitionsOf(this.#loop.minor).length === 0;
  }

  /**
   * Writes back on another thread: turning partscan on writes back all dirty pages of
   * the device on this one. Returns `false` if there is little to write.
   */
  async #writeBack(): Promise<boolean> {
    const isOn = (this.#loop.getInfo().flags & LO_FLAGS_PARTSCAN) !== 0;
    if (isOn || !this.#mayScan || !hasLargeCache(this.#loop)) return false;
    await abortable(writeBackInBackground(this.#loop), this.#signal);
    this.#checkBinding();
    return true;
  }

  /** Does what is left to do. Returns `true` if all partitions are there. */
  async look(waiting: WaitOptions): Promise<boolean> {
    this.#known = knownPartitions(this.#loop.minor);
    const { inTheWay, stale } = this.#sortOut();
    if (inTheWay.length + stale.length > 0) {
      const left = await makeRoom(this.#loop, inTheWay, stale, waiting);
      left.forEach((number) => this.#left.add(number));
      await this.readAgain();
      this.#known = knownPartitions(this.#loop.minor);
    }
    const known = new Map(this.#known.map((one) => [one.number, one]));
    this.#missing = [];
    this.hasChanged = false;
    const slices = new Slices();
    const pause = async () => {
      if (!slices.isTired) return;
      await slices.breathe();
      this.#checkBinding();
    };
    // Only the first sectors of a container are shown, in which a logical partition may
    // begin. That one matters more.
    const inOrder = this.#entries.toSorted((a, b) =>
      Number(a.isContainer ?? false) - Number(b.isContainer ?? false)
    );
    for (const entry of inOrder) {
      await pause();
      this.#place(entry, known.get(entry.number));
    }
    const checkNodes = async () => {
      for (const partition of this.#known) {
        await pause();
        await this.#checkNode(partition);
      }
    };
    const added = [...this.#missing];
    await checkNodes();
    if (this.#lacksNodes && this.#createNodes()) {
      this.#missing = added;
      await checkNodes();
    }
    return this.#missing.length === 0;
  }

  /** Creates nodes elsewhere if none appear in `/dev`. Returns `true` if it did. */
  #createNodes(): boolean {
    const [first, ...others] = this.#known;
    if (first === undefined || this.#nodes !== undefined) return false;
    if (doNodesAppear()) return false;
    this.#checkBinding();
    if (this.#owner !== undefined) {
      if (this.#owner.isDetached) return false;
      this.#owner.nodes = makeOwnNodes(this.#loop, first);
    } else {
      this.#shared.nodes = shareNodes(this.#loop, [first, ...others]);
    }
    return true;
  }

  /** Describes the existing partitions as they are. */
  async present(): Promise<Partition[]> {
    this.#known = knownPartitions(this.#loop.minor);
    const recognizeAll = async () => {
      const results: number[] = [];
      for (const known of this.#known) {
        results.push(await this.#recognize(known));
      }
      return results;
    };
    const results = await recognizeAll();
    if (results.includes(-ENOENT) && !doNodesAppear()) {
      this.#shared.nodes = findNodes(this.#known);
      if (this.#nodes !== undefined) await recognizeAll();
    }
    const wanted = new Map(this.#entries.map((entry) => [entry.number, entry]));
    return this.#known.map(({ number, start, size }): Partition => {
      const entry = wanted.get(number);
      const isSame = entry !== undefined && entry.start === start;
      const isWhole = isSame && size >= entry.size &&
        size <= this.#largest(entry);
      return isSame && (entry.isContainer || isWhole)
        ? this.#describe(entry)
        : {
          number,
          path: this.#pathOf(number),
          start,
          size,
          ...this.#fileSystemOf(number),
        };
    });
  }

  /**
   * Sorts out partitions to remove: those that are elsewhere, larger, or no longer in
   * the table.
   */
  #sortOut(): { inTheWay: KnownPartition[]; stale: KnownPartition[] } {
    if (!this.hasTable) return { inTheWay: [], stale: [] };
    const wanted = new Map(this.#entries.map((entry) => [entry.number, entry]));
    const inPlace = this.#known.flatMap((known) => {
      const entry = wanted.get(known.number);
      const isThere = entry !== undefined && this.#begins(known, entry);
      return isThere ? [{ ...entry, size: known.size }] : [];
    });
    const inTheWay: KnownPartition[] = [];
    const stale: KnownPartition[] = [];
    for (const known of this.#known) {
      const { number } = known;
      const entry = wanted.get(number);
      if (entry !== undefined) {
        if (!this.#begins(known, entry)) inTheWay.push(known);
      } else if (!isSlice(known, inPlace) && !this.#left.has(number)) {
        const isFree = this.#entries.every((other) =>
          !doOverlap(known, this.#shown(other))
        );
        (isFree ? stale : inTheWay).push(known);
      }
    }
    return { inTheWay, stale };
  }

  #shown(entry: TableEntry): { start: number; size: number } {
    return shownExtent(entry, this.#sectorSize);
  }

  /** Returns `true` if a partition is in place, or can be enlarged to its new size. */
  #begins(known: KnownPartition, entry: TableEntry): boolean {
    return known.start === entry.start &&
      known.size <= this.#largest(entry);
  }

  /**
   * Returns the largest size that the kernel may show of a partition. It cuts one off at
   * the end of the disk in units of 512 bytes, and the table is read in sectors.
   */
  #largest(entry: TableEntry): number {
    const { start, size } = this.#shown(entry);
    const isLast = start + size + this.#sectorSize > this.#size;
    return isLast ? this.#size - start : size;
  }

  #place(entry: TableEntry, known: KnownPartition | undefined): void {
    if (this.#refused.has(entry.number)) return;
    const extent = { number: entry.number, ...this.#shown(entry) };
    if (known === undefined) {
      this.#noteChange(entry);
      (this.#owner ?? this.#shared).hasPartitions = true;
      let result = addPartition(this.#loop.fd, extent);
      if (result === -EBUSY && entry.isContainer) {
        const size = this.#sectorSize; // a logical partition begins in the second one
        result = addPartition(this.#loop.fd, { ...extent, size });
      }
      this.#check(entry, result, "add");
    } else if (known.size < extent.size && !entry.isContainer) {
      this.#noteChange(entry);
      // The kernel would also shrink it, mounted or not, if another process enlarged it
      // a moment ago.
      const now = extentOf(this.#loop.minor, known);
      if (now?.start !== extent.start || now.size >= extent.size) return;
      this.#check(entry, resizePartition(this.#loop.fd, extent), "resize");
    }
  }

  /** Notes that the partition must be found by another look. */
  #noteChange({ number }: TableEntry): void {
    this.#missing.push(this.#pathOf(number));
    this.hasChanged = true;
  }

  #check(entry: TableEntry, result: number, action: string): void {
    if (result === -EBUSY && action === "add" && this.#isKnown(entry)) return;
    if (result === -ENXIO && action === "resize") return; // it no longer exists: check again
    if (result === -EBUSY || result === -EINVAL) {
      this.#refused.add(entry.number);
      this.#missing.pop();
      return;
    }
    unwrap(result, () => ({
      action: `Cannot ${action} partition ${quote(this.#pathOf(entry.number))}`,
      operation: "BLKPG",
      path: this.#loop.path,
    }));
  }

  /** Returns `true` if the kernel has the partition. It may just have added it itself. */
  #isKnown(entry: TableEntry): boolean {
    return partitionsOf(this.#loop.minor)
      .some(({ number }) => number === entry.number);
  }

  /**
   * Opens the node of a partition, which has cached pages of its own. Returns the
   * descriptor, or a negative error number.
   */
  #openNode(known: KnownPartition): number {
    const rdev = rdevOfPartition(this.#loop.minor, known);
    if (rdev === undefined) return -ENOENT;
    const { name } = known;
    this.#nodes?.add(name, rdev);
    return this.#nodes?.openNode(name, rdev) ?? openDevNode(name, rdev);
  }

  /**
   * Recognizes the content of a partition. Returns a negative error number if its node
   * cannot be opened, and otherwise 0.
   */
  async #recognize(known: KnownPartition): Promise<number> {
    const fd = this.#openNode(known);
    if (fd < 0) return fd;
    const { number, size } = known;
    const name = quote(this.#pathOf(number));
    try {
      const content = await readAhead(
        { fd, start: 0, size, name, signal: this.#signal },
        recognizeIn,
      );
      this.#fileSystems.set(number, content);
    } finally {
      await closeAsync(fd); // if others have closed it, the kernel writes back
    }
    this.#checkBinding();
    return 0;
  }

  /**
   * Recognizes the content of a partition. Keeps waiting for a node that does not exist,
   * but throws for one that may not be opened.
   */
  async #checkNode(known: KnownPartition): Promise<void> {
    const result = await this.#recognize(known);
    if (result < 0) this.#noteNode(this.#pathOf(known.number), result);
  }

  /** Notes that a node does not exist, or throws if it may not be opened. */
  #noteNode(path: string, result: number): void {
    if (result !== -EACCES && result !== -EPERM) {
      if (result === -ENOENT) this.#lacksNodes = true;
      this.#missing.push(path);
      return;
    }
    unwrap(result, () => ({
      action: `Cannot open ${quote(path)}`,
      operation: "open",
      path,
      hint: {
        [EPERM]:
          "the device cgroup forbids it, because partitions have another major number than loop devices (docker run --device-cgroup-rule='b 259:* rwm', DeviceAllow= of systemd)",
        [EACCES]: Deno.uid() === 0
          ? "it is on a mount with the option nodev"
          : "run it as root",
      },
    }));
  }

  #pathOf(number: number): string {
    const name = `${this.#loop.name}p${number}`;
    return this.#nodes?.pathOf(name) ?? `/dev/${name}`;
  }

  timedOut(): LoopError {
    const paths = [...new Set(this.#missing)];
    return new LoopError(
      `Cannot show the partitions of ${quote(this.#loop.path)}`,
      {
        errno: ETIMEDOUT,
        operation: "open",
        path: paths[0],
        hint: `${paths.join(", ")} did not appear`,
      },
    );
  }

  /** Describes the partitions of the table, and those that only the kernel has. */
  result(): Partition[] {
    const wanted = new Set(this.#entries.map(({ number }) => number));
    const others = this.#known.filter(({ number }) => !wanted.has(number));
    return [
      ...this.#entries.map((entry) => this.#describe(entry)),
      ...others.map(({ number, start, size }): Partition => ({
        number,
        path: this.#pathOf(number),
        start,
        size,
        ...this.#fileSystemOf(number),
        ...(this.#left.has(number) && {
          problem: "in use, but no longer in the table",
        }),
      })),
    ].sort((a, b) => a.number - b.number);
  }

  #describe({ isContainer: _, ...entry }: TableEntry): Partition {
    if (this.#refused.has(entry.number)) {
      const isThere = this.#known.some(({ number }) => number === entry.number);
      addProblem(
        entry,
        isThere
          ? "this kernel refuses to enlarge it"
          : "this kernel refuses to add it",
      );
    }
    return {
      ...entry,
      path: this.#pathOf(entry.number),
      ...this.#fileSystemOf(entry.number),
    };
  }

  #fileSystemOf(number: number): { fileSystem?: FileSystem } {
    const fileSystem = this.#fileSystems.get(number);
    return fileSystem === undefined ? {} : { fileSystem };
  }
}

function knownPartitions(minor: number): KnownPartition[] {
  return partitionsOf(minor).flatMap((partition) => {
    const extent = extentOf(minor, partition);
    return extent === undefined ? [] : [{ ...partition, ...extent }];
  });
}

function doOverlap(
  a: { start: number; size: number },
  b: { start: number; size: number },
): boolean {
  return a.start < b.start + b.size && b.start < a.start + a.size;
}
