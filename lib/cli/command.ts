/** What a command is. From it come its help, how its arguments are parsed, and completion in shells. */
import { wrapWords } from "./text.ts";

/** An option. */
export interface Option {
  /** The letter for short. */
  readonly letter?: string;
  /** What it takes: `SIZE`, `FILE`. Without that, it is a flag. */
  readonly value?: string;
  /** Whether there is a `--no-…` too. */
  readonly negatable?: true;
  /** Values that completion offers. Those of a `LIST` stand with commas between them. */
  readonly choices?: readonly string[];
  /** What it does. */
  readonly help: string;
}

/** The options of a command, by their long names. */
export type Options = Readonly<Record<string, Option>>;

/** A command. */
export interface Command {
  /** What it does, in one sentence. */
  readonly title: string;
  /** Command lines that people will need. */
  readonly examples: string;
  /** Its options. */
  readonly options: Options;
  /** What else there is to know, in paragraphs. */
  readonly notes: string;
  /** Does it. The result is the exit status. */
  run(args: string[]): number | Promise<number>;
}

/** What `loopdev <command> --help` prints: examples first. */
export function helpOf(
  name: string,
  operands: string,
  { title, examples, options, notes }: Command,
): string {
  const lines = optionLines(options);
  const usage = lines.length === 0
    ? operands
    : operands.replace(/( -- .*)?$/, " [options]$1");
  return [
    title,
    `Examples:\n${examples.replace(/^/gm, "  ")}`,
    `Usage: loopdev ${name} ${usage.trim()}`.trim(),
    ...lines.length === 0 ? [] : [`Options:\n${lines.join("\n")}`],
    notes.split("\n\n").map((paragraph) =>
      wrapWords(paragraph, COLUMNS).join("\n")
    ).join("\n\n"),
  ].join("\n\n");
}

/** What every terminal has. */
const COLUMNS = 79;

/** An option as people write it: `-o, --offset SIZE`. */
function spelling(name: string, { letter, value, negatable }: Option): string {
  const short = letter === undefined ? "    " : `-${letter}, `;
  const long = `--${negatable ? "[no-]" : ""}${name}`;
  return `${short}${long}${value === undefined ? "" : ` ${value}`}`;
}

function optionLines(options: Options): string[] {
  const rows = Object.entries(options)
    .map(([name, option]) => [spelling(name, option), option.help] as const);
  const width = Math.max(0, ...rows.map(([spelled]) => spelled.length)) + 3;
  const margin = `\n${" ".repeat(width + 2)}`;
  return rows.map(([spelled, help]) => {
    const lines = wrapWords(help, COLUMNS - width - 2);
    return `  ${spelled.padEnd(width)}${lines.join(margin)}`;
  });
}
