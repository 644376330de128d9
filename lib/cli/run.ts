import { attach } from "../attach.ts";
import type { Attachment } from "../attachment.ts";
import { quote } from "../errors.ts";
import type { MountOptions } from "../mounting/options.ts";
import { type Arguments, parse, UsageError } from "./arguments.ts";
import { ATTACH_OPTIONS, attachOptions } from "./attach.ts";
import { PARTITION_OPTION, partitionIn } from "./mount.ts";
import { exact, fileOf } from "./files.ts";
import type { Command, Options } from "./command.ts";
import { report } from "./report.ts";
import { fail } from "./output.ts";
import {
  type EndingSignal,
  handlersHaveRun,
  Interruption,
  SignalHandler,
} from "./signals.ts";
import { warnAboutFile } from "./warnings.ts";
import { terminal, Witness } from "./witness.ts";

const OPTIONS: Options = {
  mount: {
    value: "DIR",
    help: "mount the file system on DIR, for COMMAND alone",
  },
  ...PARTITION_OPTION,
  ...ATTACH_OPTIONS,
};

export const command: Command = {
  title: "Attach files, run a command, and detach them, also when it fails.",
  examples: `loopdev run disk.img -- sh -c 'mkfs.ext4 $LOOPDEV'
loopdev run -r a.img b.img -- sh -c 'cmp $LOOPDEV'
loopdev run --mount /mnt disk.img -- cp motd /mnt/etc/`,
  options: OPTIONS,
  notes:
    `COMMAND finds the devices in LOOPDEV, in the order of the files, separated by spaces.
The exit status is that of COMMAND: 128 and its number if a signal ended it, 127 if there
is no such command, 126 if it cannot be executed. It is 1 if a device could not be attached
or detached. An interrupt goes to COMMAND: the devices are detached when it has ended, and
by the kernel when this process is killed. Without COMMAND, $SHELL is run. With --partscan
the partitions are there when it starts.

With --mount the file system of FILE, or of its --partition, is mounted on DIR in a mount
namespace of its own: COMMAND and what it starts see it, and nobody else does. Nothing
stays, not even after kill -9: the mount and the device are gone with the last process
that COMMAND has started.

Permissions: deno run --allow-ffi --allow-run, and mostly root.`,
  run,
};

/** A program and its arguments. */
type Words = readonly [program: string, ...args: string[]];

function isCommand(words: readonly string[]): words is Words {
  return words.length > 0;
}

/** The shell of the user. It knows its environment, for which Deno would want a permission. */
const SHELL: Words = ["sh", "-c", 'exec "${SHELL:-sh}"'];

async function run(args: string[]): Promise<number> {
  const separator = args.indexOf("--");
  const end = separator < 0 ? args.length : separator;
  // Deno cannot pass on what is not UTF-8: it would be another file.
  const words = args.slice(end + 1).map(exact);
  const [program, ...programArgs] = isCommand(words) ? words : SHELL;
  const given = parse(args.slice(0, end), OPTIONS);
  const files = given.operands.map(fileOf);
  const options = attachOptions(given, files.length);
  const place = mountPlace(given, files.length);

  let status = 0;
  try {
    // Until all is detached: what this process is asked to end for is for the command.
    await using signals = new SignalForwarder();
    const { signal } = signals;
    await using devices = new AsyncDisposableStack();
    const paths: string[] = [];
    for (const file of files) {
      const device = devices.use(await attach(file, { ...options, signal }));
      warnAboutFile(device.loop, file);
      if (options.partscan) await device.partitions({ signal });
      if (place !== undefined) {
        devices.use(await mountFor(device, place, signal));
      }
      paths.push(device.path);
    }
    await handlersHaveRun();
    signal.throwIfAborted();
    status = await runCommand(program, programArgs, paths.join(" "), signals);
  } catch (error) {
    const failed = report(error);
    return status || failed;
  }
  return status;
}

/** Mount point for the command, and options of the mount. */
interface MountPlace extends MountOptions {
  readonly directory: string | URL;
}

function mountPlace(
  given: Arguments,
  fileCount: number,
): MountPlace | undefined {
  const directory = given.value("mount");
  if (directory === undefined) {
    if (given.value("partition") === undefined) return undefined;
    throw new UsageError("--partition is for --mount");
  }
  if (fileCount > 1) throw new UsageError("--mount takes one FILE");
  return { directory: fileOf(directory), ...partitionIn(given) };
}

async function mountFor(
  device: Attachment,
  { directory, ...options }: MountPlace,
  signal: AbortSignal,
): Promise<AsyncDisposable> {
  const { mountInNamespace } = await import("../mount_namespace.ts");
  return await mountInNamespace(device, directory, { ...options, signal });
}

/** The exit statuses of a shell for a command that it cannot run. */
const NOT_EXECUTABLE = 126;
const NOT_FOUND = 127;

async function runCommand(
  program: string,
  args: string[],
  devices: string,
  signals: SignalForwarder,
): Promise<number> {
  let child;
  try {
    child = new Deno.Command(program, { args, env: { LOOPDEV: devices } })
      .spawn();
  } catch (error) {
    const isNotRun = error instanceof Error &&
      !(error instanceof Deno.errors.NotCapable);
    if (!isNotRun) throw error;
    const isMissing = error instanceof Deno.errors.NotFound;
    const why = isMissing ? "no such command" : reason(error);
    fail(`Cannot run ${quote(program)}: ${why}`);
    return isMissing ? NOT_FOUND : NOT_EXECUTABLE;
  }
  signals.forwardTo(child);
  return (await child.status).code; // 128 and the number of the signal that ended it
}

/** Why a command cannot be executed, without what the runtime adds to that. */
function reason({ message }: Error): string {
  return message.replace(/^Failed to spawn '.*': /s, "")
    .replace(/ \(os error \d+\)$/, "").toLowerCase();
}

/** Passes on to the command what would end this process. Before there is one, it aborts. */
class SignalForwarder implements AsyncDisposable {
  static readonly #FROM_TERMINAL: readonly EndingSignal[] = [
    "SIGINT",
    "SIGQUIT",
  ];
  /** In milliseconds: who signals all of a group may come to the witness a moment later. */
  static readonly #MOMENT = 20;
  readonly #handler = new SignalHandler(
    [...SignalForwarder.#FROM_TERMINAL, "SIGTERM", "SIGHUP"],
    (signal) => this.#forward(signal),
  );
  readonly #interrupt = new AbortController();
  readonly #hasTerminal = terminal().exists;
  readonly #witnesses = new AsyncDisposableStack();
  #witness: Witness | undefined;
  #child: Deno.ChildProcess | undefined;

  /** Aborted by a signal before there is a command. */
  get signal(): AbortSignal {
    return this.#interrupt.signal;
  }

  /** Passes on signals from now on, and what has come while the command was started. */
  forwardTo(child: Deno.ChildProcess): void {
    this.#child = child;
    this.#callWitness();
  }

  /** After the command: a signal in between comes twice rather than never. */
  #callWitness(): void {
    if (this.#hasTerminal) this.#witness = Witness.start();
    if (this.#witness !== undefined) this.#witnesses.use(this.#witness);
  }

  async #forward(signal: EndingSignal): Promise<void> {
    const child = this.#child;
    if (child === undefined) {
      this.#interrupt.abort(new Interruption(signal));
      return;
    }
    if (await this.#isForAll(signal)) return;
    try {
      child.kill(signal);
    } catch {
      // It has ended.
    }
  }

  /** Whether the command gets the signal without us: a terminal sends it to the whole group. */
  async #isForAll(signal: EndingSignal): Promise<boolean> {
    if (!this.#hasTerminal) return false;
    const witness = this.#witness;
    if (witness === undefined) {
      return SignalForwarder.#FROM_TERMINAL.includes(signal) &&
        terminal().isOurs;
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    setTimeout(resolve, SignalForwarder.#MOMENT);
    await promise;
    if (!witness.isSignalled()) return false;
    if (this.#witness === witness) this.#callWitness();
    return true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#witnesses.disposeAsync();
    this.#handler[Symbol.dispose]();
  }
}
