/** Formats tables, aligned by the width of characters on a terminal. */
import { escapeControls } from "../errors.ts";
import { clipMiddle, widthOf } from "./text.ts";

/** A column of a table. */
export interface Column<T> {
  readonly heading: string;
  /** Returns the text of a row's cell. */
  cell(row: T): string;
  /** `true` if cells are aligned to the right. */
  readonly right?: boolean;
  /** Part that is left out on a narrow terminal: the middle of cells, or the column. */
  readonly narrowed?: "cells" | "column";
}

/** Style of a table. */
export interface TableStyle {
  /** `true` if the table begins with headings. */
  readonly headings?: boolean;
  /** Width of the terminal in columns. By default, the width of the table is not limited. */
  readonly width?: number | undefined;
}

/** Minimum width of a narrowed cell. */
const NARROWEST = 8;
/** Width of cells below which other columns are left out. */
const COMFORTABLE = 20;

/** Returns the lines of a table, or none if there are no rows. */
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
  /** Width of the column as shown. */
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

/**
 * Fits a table to the terminal, if possible. Leaves out the middle of cells, or a column
 * if too little of the cells would remain.
 */
function narrow<T>(columns: readonly Cells<T>[], width: number): Cells<T>[] {
  const shown = leastWidth(columns, COMFORTABLE) <= width
    ? [...columns]
    : columns.filter(({ narrowed }) => narrowed !== "column");
  return shrink(shown, width);
}

/** Returns the width of a table whose cells are cut to `least` columns. */
function leastWidth<T>(cells: readonly Cells<T>[], least: number): number {
  return cells.reduce(
    (sum, { narrowed, width }) =>
      sum + 1 + (narrowed === "cells" ? Math.min(width, least) : width),
    -1,
  );
}

/** Cuts the widest cells, column by column. */
function shrink<T>(shown: Cells<T>[], width: number): Cells<T>[] {
  let excess = leastWidth(shown, Infinity) - width;
  const narrowed = shown.filter(({ narrowed }) => narrowed === "cells");
  for (; excess > 0; excess--) {
    const [widest] = narrowed.toSorted((a, b) => b.width - a.width);
    if (widest === undefined || widest.width <= NARROWEST) break;
    widest.width--;
  }
  return shown;
}

const UNITS = ["B", "K", "M", "G", "T", "P", "E"];

/** Formats a size with a unit: 1.5M, 64M, 0B. */
export function formatSize(bytes: number): string {
  let size = bytes;
  let unit = 0;
  while (size >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit++;
  }
  return `${Number.isInteger(size) ? size : size.toFixed(1)}${UNITS[unit]}`;
}
