/** Formats tables like libsmartcols of util-linux: aligned, raw, or JSON. */
import { unicodeWidth } from "@std/cli/unicode-width";
import { type ByteString, fromText, toBytes } from "./byte_string.ts";

/** A column of a table. */
export interface TableColumn {
  readonly name: string;
  readonly type: "string" | "number" | "boolean";
  readonly right: boolean;
}

/** A cell; `undefined` if it is empty. */
export type Cell = ByteString | undefined;

/** Style of a table. */
export interface TableStyle {
  readonly format: "aligned" | "raw" | "json";
  readonly headings: boolean;
  /** `true` if the terminal displays UTF-8. */
  readonly isUtf8: boolean;
}

/** Returns the lines of a table. A table without rows has none, except in JSON. */
export function formatTable(
  columns: readonly TableColumn[],
  rows: readonly (readonly Cell[])[],
  style: TableStyle,
): ByteString {
  if (style.format === "json") return formatJson(columns, rows);
  if (rows.length === 0) return "";
  const lines = [
    columns.map(({ name }) => name),
    ...rows.map((row) => row.map((cell = "") => cell)),
  ];
  const formatted = style.format === "raw"
    ? lines.map((line) => line.map(escapeBlanks).join(" "))
    : align(columns, lines, style.isUtf8);
  // Columns are as wide as their headings, even if those are omitted.
  return formatted.slice(style.headings ? 0 : 1)
    .map((line) => `${line}\n`).join("");
}

function align(
  columns: readonly TableColumn[],
  lines: readonly ByteString[][],
  isUtf8: boolean,
): ByteString[] {
  const cells = lines.map((line) => line.map((text) => show(text, isUtf8)));
  const widths = columns.map((_, index) =>
    Math.max(...cells.map((line) => line[index]!.width))
  );
  const last = columns.length - 1;
  return cells.map((line) =>
    line.map(({ text, width }, index) => {
      const padding = " ".repeat(widths[index]! - width);
      if (index === last && (text === "" || !columns[last]!.right)) return text;
      return columns[index]!.right ? padding + text : text + padding;
    }).join(" ")
  );
}

/** Returns a text as the terminal can display it, with other bytes escaped. */
function show(
  text: ByteString,
  isUtf8: boolean,
): { text: ByteString; width: number } {
  let shown = "";
  let width = 0;
  const add = (part: ByteString, columns: number) => {
    shown += part;
    width += columns;
  };
  for (let at = 0; at < text.length;) {
    const isEscape = text.startsWith("\\x", at);
    if (isPrintableAscii(text[at]!) && !isEscape) {
      add(text[at++]!, 1);
      continue;
    }
    const character = isUtf8 ? characterAt(text, at) : undefined;
    if (character !== undefined && isPrintable(character) && !isEscape) {
      const bytes = fromText(character);
      add(bytes, unicodeWidth(character));
      at += bytes.length;
    } else {
      const length = character === undefined ? 1 : fromText(character).length;
      for (const end = at + length; at < end; at++) add(hex(text[at]!), 4);
    }
  }
  return { text: shown, width };
}

/** Returns the character whose UTF-8 starts at a position. */
function characterAt(text: ByteString, at: number): string | undefined {
  const first = text.charCodeAt(at);
  const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  try {
    return strictDecoder.decode(toBytes(text.slice(at, at + length)));
  } catch {
    return undefined;
  }
}

const strictDecoder = new TextDecoder("utf-8", {
  fatal: true,
  ignoreBOM: true,
});

function isPrintable(character: string): boolean {
  return !/[\p{Cc}\p{Cn}\p{Cs}\p{Zl}\p{Zp}]/u.test(character);
}

function isPrintableAscii(byte: string): boolean {
  return byte >= " " && byte <= "~";
}

function hex(byte: string): string {
  return `\\x${byte.charCodeAt(0).toString(16).padStart(2, "0")}`;
}

/** Escapes a cell of a line that is split at blanks. */
function escapeBlanks(text: ByteString): ByteString {
  return text.replace(/[^!-[\]-~]/g, hex);
}

function formatJson(
  columns: readonly TableColumn[],
  rows: readonly (readonly Cell[])[],
): ByteString {
  const objects = rows.map((row) => {
    const fields = columns.map(({ name, type }, index) =>
      `         "${name.toLowerCase()}": ${jsonValue(type, row[index])}`
    );
    return `{\n${fields.join(",\n")}\n      }`;
  });
  const content = objects.length === 0 ? "" : `      ${objects.join(",")}`;
  return `{\n   "loopdevices": [\n${content}\n   ]\n}\n`;
}

function jsonValue(type: TableColumn["type"], cell: Cell): ByteString {
  if (type === "boolean") return cell === "1" ? "true" : "false";
  if (cell === undefined || cell === "") return "null";
  return type === "number" ? cell : `"${escapeJson(cell)}"`;
}

const SHORT: Record<string, string> = {
  '"': '\\"',
  "\\": "\\\\",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
};

/**
 * Escapes a JSON string. Bytes that are not UTF-8 are kept, so that a reader of bytes
 * gets the exact name.
 */
function escapeJson(text: ByteString): ByteString {
  return text.replace(
    // deno-lint-ignore no-control-regex
    /["\\\x00-\x1f]/g,
    (character) =>
      SHORT[character] ??
        `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
