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
  /** What it does. */
  readonly help: string;
}

/** The options of a command, by their long names. */
export type Options = Readonly<Record<string, Option>>;

/** What a command does. */
export interface Command {
  /** What it does, in one sentence. */
  readonly title: string;
  /** Command lines that people will need. */
  readonly examples: string;
  /** Its options. */
  readonly options: Options;
  /** What else there is to know, in paragraphs. */
  readonly notes: string;
  /** Runs the command and returns the exit status. `commands` is for one that describes them all. */
  run(args: string[], commands: Commands): number | Promise<number>;
}

/** What is known of a command before it is loaded. */
export interface Entry {
  /** What it takes beside options. */
  readonly operands: string;
  /** What it does, in a few words. */
  readonly summary: string;
  /** Another name of the command. */
  readonly alias?: string;
  load(): Promise<{ command: Command }>;
}

/** Commands by their names, in the order of the help. */
export type Commands = Readonly<Record<string, Entry>>;
