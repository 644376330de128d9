/** Tables, aligned by what a terminal shows. */
import { escapeControls } from "../errors.ts";
import { clipMiddle, widthOf } from "./text.ts";

/** A column of a table. */
export interface Column<T> {
  readonly heading: string;
  /** What a row shows there. */
  cell(row: T): string;
  /** Aligned at the right. */
  readonly right?: boolean;
  /** How a table becomes as narrow as the terminal: the middle of cells, or the column, is left out. */
  readonly narrowed?: "cells" | "column";
}

/** How a table is shown. */
export interface TableStyle {
  /** Whether it begins with the headings. */
  readonly headings?: boolean;
  /** The columns of the terminal; without it the table is as wide as it needs to be. */
  readonly width?: number | undefined;
}

/** The fewest columns that a narrowed cell gets. */
const NARROWEST = 8;

/** The lines of a table; none without rows. */
export function table<T>(
  rows: readonly T[],
  columns: readonly Column<T>[],
  { headings = true, width = Infinity }: TableStyle = {},
): string[] {
  if (rows.length === 0) return [];
  const all = columns.map((column) => new Cells(rows, column, headings));
  const shown = narrow(all, width);
  return shown[0]!.texts.map((_, row) =>
    shown.map((cells) => cells.padded(row)).join(" ").trimEnd()
  );
}

/** A column with its cells. */
class Cells<T> {
  readonly narrowed: Column<T>["narrowed"];
  readonly texts: readonly string[];
  readonly #right: boolean;
  readonly #widths: readonly number[];
  /** How wide the column is shown. */
  width: number;

  constructor(rows: readonly T[], column: Column<T>, headings: boolean) {
    const cells = rows.map((row) => escapeControls(column.cell(row)));
    this.texts = headings ? [column.heading, ...cells] : cells;
    this.narrowed = column.narrowed;
    this.#right = column.right ?? false;
    this.#widths = this.texts.map(widthOf);
    this.width = Math.max(...this.#widths);
  }

  padded(row: number): string {
    const text = this.texts[row]!;
    const room = this.width - this.#widths[row]!;
    if (room < 0) return clipMiddle(text, this.width);
    const padding = " ".repeat(room);
    return this.#right ? padding + text : text + padding;
  }
}

/** Leaves out columns, then the middle of cells, until the table is as narrow as it can be. */
function narrow<T>(columns: readonly Cells<T>[], width: number): Cells<T>[] {
  const excess = (shown: readonly Cells<T>[]): number =>
    shown.reduce((sum, cells) => sum + cells.width + 1, -1) - width;
  let shown = [...columns];
  if (excess(shown) > 0) {
    shown = shown.filter(({ narrowed }) => narrowed !== "column");
  }
  const narrowed = shown.filter(({ narrowed }) => narrowed === "cells");
  while (excess(shown) > 0) {
    const [widest] = narrowed.toSorted((a, b) => b.width - a.width);
    if (widest === undefined || widest.width <= NARROWEST) break;
    widest.width--;
  }
  return shown;
}

const UNITS = ["B", "K", "M", "G", "T", "P", "E"];

/** A size for people: 1.5M, 64M, 0B. */
export function formatSize(bytes: number): string {
  let size = bytes;
  let unit = 0;
  while (size >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit++;
  }
  return `${Number.isInteger(size) ? size : size.toFixed(1)}${UNITS[unit]}`;
}
