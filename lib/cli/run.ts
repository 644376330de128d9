import { attach } from "../attach.ts";
import { LoopError, quote } from "../errors.ts";
import { parse, UsageError } from "./arguments.ts";
import { ATTACH_OPTIONS, attachOptions } from "./attach.ts";
import { exact, fileOf } from "./files.ts";
import type { Command } from "./command.ts";
import { report } from "./report.ts";
import { fail } from "./output.ts";
import { warnOfRest } from "./warnings.ts";

export const command: Command = {
  title: "Attach files, run a command, and detach them, also when it fails.",
  examples: `loopdev run disk.img -- sh -c 'mkfs.ext4 $LOOPDEV'
loopdev run -r a.img b.img -- sh -c 'cmp $LOOPDEV'`,
  options: ATTACH_OPTIONS,
  notes:
    `COMMAND finds the devices in LOOPDEV, in the order of the files, with a blank between
them. The exit status is that of COMMAND; 1 when it could not be run, or a device
could not be attached or detached. An interrupt is for COMMAND: the devices are
detached when it has ended, and by the kernel when this process is killed.
Permissions: deno run --allow-ffi --allow-run, and mostly root.`,
  run,
};

async function run(args: string[]): Promise<number> {
  const end = args.indexOf("--");
  // Deno cannot pass on what is not UTF-8: it would be another file.
  const [program, ...programArgs] = end < 0
    ? []
    : args.slice(end + 1).map(exact);
  if (program === undefined) {
    throw new UsageError("COMMAND is missing: it stands behind --");
  }
  const given = parse(args.slice(0, end), ATTACH_OPTIONS);
  const files = given.operands.map(fileOf);
  const options = attachOptions(given, files.length);

  let status = 1;
  try {
    await using devices = new AsyncDisposableStack();
    const paths: string[] = [];
    for (const file of files) {
      const device = devices.use(await attach(file, options));
      warnOfRest(device.loop, file);
      paths.push(device.path);
    }
    status = await runCommand(program, programArgs, paths.join(" "));
  } catch (error) {
    report(error);
    return status || 1;
  }
  return status;
}

async function runCommand(
  program: string,
  args: string[],
  devices: string,
): Promise<number> {
  // Before the command is there, so that no signal ends this process and not it.
  using signals = new SignalForwarder();
  let child;
  try {
    child = new Deno.Command(program, { args, env: { LOOPDEV: devices } })
      .spawn();
  } catch (error) {
    if (!(error instanceof Error) || error instanceof LoopError) throw error;
    fail(`Cannot run ${quote(program)}: ${error.message}`);
    return 1;
  }
  signals.forwardTo(child);
  return (await child.status).code;
}

/** What would end this process is for the command. */
class SignalForwarder implements Disposable {
  static readonly #FROM_TERMINAL: readonly Deno.Signal[] = [
    "SIGINT",
    "SIGQUIT",
  ];
  static readonly #SIGNALS: readonly Deno.Signal[] = [
    ...SignalForwarder.#FROM_TERMINAL,
    "SIGTERM",
    "SIGHUP",
  ];
  readonly #handlers = SignalForwarder.#SIGNALS.map((signal) => ({
    signal,
    handler: () => this.#forward(signal),
  }));
  /** A terminal sends its interrupts to the command as well. */
  readonly #hasTerminal = Deno.stdin.isTerminal();
  readonly #early: Deno.Signal[] = [];
  #child: Deno.ChildProcess | undefined;

  constructor() {
    for (const { signal, handler } of this.#handlers) {
      Deno.addSignalListener(signal, handler);
    }
  }

  /** From now on, and what has come already. */
  forwardTo(child: Deno.ChildProcess): void {
    this.#child = child;
    this.#early.forEach((signal) => this.#forward(signal));
  }

  #forward(signal: Deno.Signal): void {
    if (this.#child === undefined) {
      this.#early.push(signal);
      return;
    }
    const isThere = this.#hasTerminal &&
      SignalForwarder.#FROM_TERMINAL.includes(signal);
    if (isThere) return;
    try {
      this.#child.kill(signal);
    } catch {
      // it has ended
    }
  }

  [Symbol.dispose](): void {
    for (const { signal, handler } of this.#handlers) {
      Deno.removeSignalListener(signal, handler);
    }
  }
}
