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
/** With fewer for a cell, other columns are left out. */
const COMFORTABLE = 20;

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

/** Makes a table as narrow as the terminal, if it can be: leaves out the middle of cells, or a column if too little of them would stay. */
function narrow<T>(columns: readonly Cells<T>[], width: number): Cells<T>[] {
  const shown = leastWidth(columns, COMFORTABLE) <= width
    ? [...columns]
    : columns.filter(({ narrowed }) => narrowed !== "column");
  return shrink(shown, width);
}

/** How wide a table is whose cells are cut to at least so many columns. */
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
