/** Description of commands, from which help, argument parsing and shell completion are made. */

/** An option. */
export interface Option {
  /** Short form, a letter. */
  readonly letter?: string;
  /** Name of the value: `SIZE`, `FILE`. An option without a value is a flag. */
  readonly value?: string;
  /** `true` if the option also has a `--no-…` form. */
  readonly negatable?: true;
  /** Values that completion offers. Values of a `LIST` are separated by commas. */
  readonly choices?: readonly string[];
  /** Description for the help. */
  readonly help: string;
}

/** Options of a command, by their long names. */
export type Options = Readonly<Record<string, Option>>;

/** A command. */
export interface Command {
  /** Description in one sentence. */
  readonly title: string;
  /** Common command lines. */
  readonly examples: string;
  /** Options of the command. */
  readonly options: Options;
  /** Further notes, in paragraphs. */
  readonly notes: string;
  /** Runs the command and returns the exit status. A command that describes all others uses `commands`. */
  run(args: string[], commands: Commands): number | Promise<number>;
}

/** Description of a command that is not loaded. */
export interface Entry {
  /** Arguments other than options. */
  readonly operands: string;
  /** Description in a few words. */
  readonly summary: string;
  /** Another name of the command. */
  readonly alias?: string;
  load(): Promise<{ command: Command }>;
}

/** Commands by their names, in the order of the help. */
export type Commands = Readonly<Record<string, Entry>>;
