/** Text for people. */
import { unicodeWidth } from "@std/cli/unicode-width";

/** The columns that a text takes on a terminal. */
export function widthOf(text: string): number {
  // Most texts are ASCII, and for others expressions must be made first.
  return /^[ -~]*$/.test(text) ? text.length : unicodeWidth(text);
}

/** In lines of at most so many columns, where its words allow that. */
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

/** Cuts a text to the columns that a terminal has for it; "…" stands for its end. */
export function clip(text: string, columns: number): string {
  if (widthOf(text) <= columns) return text;
  return `${firstColumns([...text], columns - 1)}…`;
}

/** Leaves out the middle of a text that is too wide: names tell most at their end. */
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

/** As many of the characters as fit. */
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
