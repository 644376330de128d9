/** Measures, wraps and cuts text for a terminal. */
import { unicodeWidth } from "@std/cli/unicode-width";

/** Returns the width of a text on a terminal, in columns. */
export function widthOf(text: string): number {
  // Most texts are ASCII. Others need regular expressions that are slow to compile.
  return /^[ -~]*$/.test(text) ? text.length : unicodeWidth(text);
}

/** Breaks a text into lines of at most `columns` columns, unless a word is longer. */
export function wrapWords(text: string, columns: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= columns) {
      lines[lines.length - 1] = `${last} ${word}`;
    } else lines.push(word);
  }
  return lines;
}

/** Cuts a text to a number of columns. "…" replaces its end. */
export function clip(text: string, columns: number): string {
  if (widthOf(text) <= columns) return text;
  return `${firstColumns([...text], columns - 1)}…`;
}

/** Leaves out the middle of a text that is too wide, because the end of a name tells most. */
export function clipMiddle(text: string, columns: number): string {
  if (widthOf(text) <= columns) return text;
  const characters = [...text];
  const end = firstColumns(
    characters.toReversed(),
    Math.ceil((columns - 1) * 2 / 3),
  );
  const start = firstColumns(characters, columns - 1 - widthOf(end));
  return `${start}…${[...end].toReversed().join("")}`;
}

/** Returns the first characters that fit into a number of columns. */
function firstColumns(characters: readonly string[], columns: number): string {
  let text = "";
  let room = columns;
  for (const character of characters) {
    room -= widthOf(character);
    if (room < 0) break;
    text += character;
  }
  return text;
}
