/** Spells options, and suggests corrections of mistyped words. */

/** Returns the long spellings of an option. */
export function spellings(
  name: string,
  negatable: boolean | undefined,
): string[] {
  return [`--${name}`, ...negatable ? [`--no-${name}`] : []];
}

/** Returns `: did you mean list?`, or an empty text if no candidate resembles the word. */
export function suggest(
  word: string,
  candidates: readonly string[],
): string {
  // Longer words are not typing errors, and would take long to compare.
  if (word.length > 40) return "";
  const ranked = candidates
    .map((candidate) => ({ candidate, edits: difference(word, candidate) }))
    .sort((a, b) => a.edits - b.edits);
  const [best] = ranked;
  return best !== undefined && best.edits <= tolerance(word)
    ? `: did you mean ${best.candidate}?`
    : "";
}

function tolerance(word: string): number {
  const { length } = word.replace(/^--/, "");
  return length <= 3 ? 1 : length <= 7 ? 2 : 3;
}

/** Counts edits. An abbreviation counts as one edit, however short it is. */
function difference(word: string, candidate: string): number {
  const isAbbreviation = word.length >= 3 && candidate.startsWith(word);
  return isAbbreviation ? 1 : edits(word, candidate);
}

/**
 * Counts the letters to insert, remove, replace or exchange with their neighbor to turn
 * one word into the other.
 */
export function edits(from: string, to: string): number {
  let [beforeLast, last]: [number[], number[]] = [
    [],
    Array.from({ length: to.length + 1 }, (_, column) => column),
  ];
  for (let row = 1; row <= from.length; row++) {
    const current = [row];
    for (let column = 1; column <= to.length; column++) {
      const isSame = from[row - 1] === to[column - 1];
      const isExchange = row > 1 && column > 1 &&
        from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1];
      current[column] = Math.min(
        last[column]! + 1,
        current[column - 1]! + 1,
        last[column - 1]! + (isSame ? 0 : 1),
        isExchange ? beforeLast[column - 2]! + 1 : Infinity,
      );
    }
    [beforeLast, last] = [last, current];
  }
  return last[to.length]!;
}
