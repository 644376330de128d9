/**
 * How many columns a text takes on a terminal. The npm build of the package
 * lacks a data file of this function, so these are the wide ranges of Unicode's
 * East Asian Width that matter in file names, and marks that take no column.
 */
export function unicodeWidth(text: string): number {
  // Here, because such expressions take long to parse, and few texts need them.
  const zero = /[\p{Mn}\p{Me}\p{Cf}\p{Cc}]/u;
  const wide =
    /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1f64f}\u{1f680}-\u{1f6ff}\u{1f900}-\u{1f9ff}\u{20000}-\u{3fffd}]/u;
  let width = 0;
  for (const character of text) {
    if (zero.test(character)) continue;
    width += wide.test(character) ? 2 : 1;
  }
  return width;
}
