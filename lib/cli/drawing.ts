/** Draws a disk to scale for a terminal. */
import type { Partition } from "../partitions/partition.ts";
import { escapeControls } from "../errors.ts";
import { formatSize } from "./table.ts";
import { widthOf } from "./text.ts";

/** A stretch of the disk: a partition, or free space between them. */
interface Stretch {
  readonly size: number;
  /** Labels to choose from, the longest first. */
  readonly labels: readonly string[];
  readonly isFree: boolean;
}

/** MBR types of a partition that contains others, which are drawn in its place. */
const CONTAINERS = ["0x5", "0xf", "0x85"];

/**
 * Draws the partitions of a disk of `size` bytes into `width` columns. Each one is as wide
 * as its share, but never too narrow for its number.
 */
export function drawDisk(
  partitions: readonly Partition[],
  size: number,
  width: number,
): string[] {
  const stretches = stretchesOf(partitions, size);
  const columns = share(
    stretches,
    width - stretches.length - 1, // without the lines between them
  );
  if (columns === undefined) return []; // no room
  const line = (left: string, middle: string, right: string, fill = "─") =>
    left + columns.map((count) => fill.repeat(count)).join(middle) + right;
  const cells = stretches.map(({ labels, isFree }, index) => {
    const room = columns[index]!;
    const label = labels.find((label) => widthOf(label) <= room) ?? "";
    return label + (isFree ? "·" : " ").repeat(room - widthOf(label));
  });
  return [line("┌", "┬", "┐"), `│${cells.join("│")}│`, line("└", "┴", "┘")];
}

/** Returns the stretches in the order of the disk. Gaps that are too small to draw are left out. */
function stretchesOf(
  partitions: readonly Partition[],
  size: number,
): Stretch[] {
  const stretches: Stretch[] = [];
  const smallest = size / 100;
  let end = 0;
  const addFree = (until: number): void => {
    if (until - end < smallest) return;
    const room = until - end;
    stretches.push({ size: room, labels: [formatSize(room)], isFree: true });
  };
  const drawn = partitions
    .filter(({ type }) => !CONTAINERS.includes(type ?? ""))
    .toSorted((a, b) => a.start - b.start);
  for (const { number, name, start, size } of drawn) {
    addFree(start);
    const label = escapeControls(name ?? "");
    stretches.push({
      size,
      labels: [
        ...label === ""
          ? []
          : [`${number} ${label} ${formatSize(size)}`, `${number} ${label}`],
        `${number} ${formatSize(size)}`,
        `${number}`,
      ],
      isFree: false,
    });
    end = Math.max(end, start + size);
  }
  addFree(size);
  return stretches;
}

/** Returns the number of columns of each stretch, or `undefined` if there are too few columns. */
function share(
  stretches: readonly Stretch[],
  columns: number,
): number[] | undefined {
  const least = stretches.map(({ labels, isFree }) =>
    isFree ? 1 : labels.at(-1)!.length
  );
  const total = stretches.reduce((sum, { size }) => sum + size, 0);
  let spare = columns - least.reduce((sum, count) => sum + count, 0);
  if (spare < 0) return undefined;
  const counts = [...least];
  // Each spare column goes to the stretch that is farthest below its share.
  for (; spare > 0; spare--) {
    let poorest = 0;
    let most = -Infinity;
    stretches.forEach(({ size }, index) => {
      const missing = size / total * columns - counts[index]!;
      if (missing > most) [most, poorest] = [missing, index];
    });
    counts[poorest]!++;
  }
  return counts;
}
