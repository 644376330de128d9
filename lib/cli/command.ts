/** What a command is. From it come its help, how its arguments are parsed, and completion in shells. */

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
  /** What it does, with line breaks where the help is to have them. */
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
  /** What else there is to know. */
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
    notes,
  ].join("\n\n");
}

/** An option as people write it: `-o, --offset SIZE`. */
function spelling(name: string, { letter, value, negatable }: Option): string {
  const short = letter === undefined ? "    " : `-${letter}, `;
  const long = `--${negatable ? "[no-]" : ""}${name}`;
  return `${short}${long}${value === undefined ? "" : ` ${value}`}`;
}

function optionLines(options: Options): string[] {
  const rows = Object.entries(options)
    .map(([name, option]) => [spelling(name, option), option.help] as const);
  const width = Math.max(...rows.map(([spelled]) => spelled.length)) + 3;
  return rows.map(([spelled, help]) =>
    `  ${spelled.padEnd(width)}${
      help.replaceAll("\n", `\n${" ".repeat(width + 2)}`)
    }`
  );
}
