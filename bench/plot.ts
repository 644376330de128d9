/**
 * Draws the picture of the README: bars on a logarithmic scale, readable on light and
 * dark backgrounds.
 */
import { CONTENDERS, duration, type Report } from "./report.ts";
import type { Row } from "./result.ts";

const WIDTH = 760;
const LABELS = 170;
const VALUES = 80;
const BAR = { height: 18, gap: 6 };
/** Gray with enough contrast on white and on black. */
const TEXT = "#7d8590";
const LINE = "#7d859055";
const OURS = "#2f9e73";
const OTHERS = "#8a94a6";

/** Draws the most important groups. */
export function plot({ rows }: Report): string {
  const groups = ["attach memory", "attach disk", "list 512", "processes 8"]
    .map((id) => rows.find((row) => row.id === id))
    .filter((row) => row !== undefined);
  const all = groups.flatMap((group) => bars(group).map(({ value }) => value));
  const first = Math.floor(Math.log10(Math.min(...all)));
  const last = Math.ceil(Math.log10(Math.max(...all)));
  const scale = (value: number): number =>
    (WIDTH - LABELS - VALUES) * (Math.log10(value) - first) / (last - first);

  const drawn: string[] = [];
  let y = 16;
  for (const group of groups) {
    drawn.push(text(4, y, titleOf(group), "start", true));
    y += 12;
    for (const { name, value } of bars(group)) {
      const middle = y + BAR.height / 2 + 4;
      const width = scale(value);
      drawn.push(
        text(LABELS - 8, middle, CONTENDERS[name]!, "end"),
        `<rect x="${LABELS}" y="${y}" width="${
          width.toFixed(1)
        }" height="${BAR.height}" rx="2" fill="${
          name === "loopdev" ? OURS : OTHERS
        }"/>`,
        text(LABELS + width + 6, middle, duration(value), "start"),
      );
      y += BAR.height + BAR.gap;
    }
    y += 22;
  }
  const bottom = y - 22;
  const lines: string[] = [];
  for (let power = first; power <= last; power++) {
    const x = (LABELS + scale(10 ** power)).toFixed(1);
    lines.push(
      `<line x1="${x}" x2="${x}" y1="22" y2="${bottom}" stroke="${LINE}"/>`,
      text(Number(x), bottom + 16, duration(10 ** power), "middle"),
    );
  }
  const height = bottom + 26;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Times on a logarithmic scale: shorter is faster">
${[...lines, ...drawn].join("\n")}
</svg>
`;
}

function titleOf({ id, title }: Row): string {
  return id.startsWith("processes")
    ? `${title}, attach and detach: the longest wait`
    : title;
}

/** Returns the bars of a group: medians, or the longest wait of many processes. */
function bars({ id, samples }: Row): { name: string; value: number }[] {
  return Object.keys(CONTENDERS)
    .filter((name) => (samples[name]?.count ?? 0) > 0)
    .map((name) => {
      const { median, most } = samples[name]!;
      return { name, value: id.startsWith("processes") ? most : median };
    });
}

function text(
  x: number,
  y: number,
  content: string,
  anchor: "start" | "middle" | "end",
  bold = false,
): string {
  return `<text x="${x.toFixed(1)}" y="${
    y.toFixed(1)
  }" text-anchor="${anchor}" fill="${TEXT}"${
    bold ? ' font-weight="600"' : ""
  }>${content}</text>`;
}
