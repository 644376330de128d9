/** Tables, aligned by what a terminal shows and never cut off. */
import { unicodeWidth } from "@std/cli/unicode-width";
import { escapeControls } from "../errors.ts";

/** A column of a table. */
export interface Column<T> {
  /** What a row shows there. */
  cell(row: T): string;
  /** Aligned at the right. */
  right?: boolean;
}

/** The lines of a table; none without rows. */
export function table<T>(
  rows: readonly T[],
  columns: readonly (Column<T> & { heading: string })[],
  headings = true,
): string[] {
  if (rows.length === 0) return [];
  const lines = rows.map((row) =>
    columns.map(({ cell }) => escapeControls(cell(row)))
  );
  if (headings) lines.unshift(columns.map(({ heading }) => heading));
  const widths = columns.map((_, index) =>
    Math.max(...lines.map((line) => unicodeWidth(line[index]!)))
  );
  return lines.map((line) =>
    line.map((cell, index) => {
      const padding = " ".repeat(widths[index]! - unicodeWidth(cell));
      return columns[index]!.right ? padding + cell : cell + padding;
    }).join(" ").trimEnd()
  );
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
