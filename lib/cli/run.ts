import { attach } from "../attach.ts";
import type { Attachment } from "../attachment.ts";
import { LoopError, quote } from "../errors.ts";
import type { MountedFileSystem } from "../mounted.ts";
import type { WaitOptions } from "../waiting.ts";
import type { MountOptions } from "../mounting/options.ts";
import {
  type Arguments,
  parse,
  TIMEOUT_OPTION,
  timeoutIn,
  UsageError,
} from "./arguments.ts";
import { ATTACH_OPTIONS, attachOptions } from "./attach.ts";
import { MOUNT_OPTIONS, mountOptions } from "./mount.ts";
import { exact, fileOf } from "./files.ts";
import type { Command, Options } from "./command.ts";
import { report } from "./report.ts";
import { inWordsOfFile } from "./words.ts";
import { ENOENT } from "../sys/errno.ts";
import { fail } from "./output.ts";
import {
  type EndingSignal,
  handlersHaveRun,
  Interruption,
  SignalHandler,
} from "./signals.ts";
import { warnAboutFile } from "./warnings.ts";
import {
  type Wait,
  waitForDevice,
  waitForMount,
  withWaitingMessage,
} from "./waiting_message.ts";
import { terminal, Witness } from "./witness.ts";

const OPTIONS: Options = {
  mount: {
    value: "DIR",
    help: "mount the file system on DIR, only for COMMAND",
  },
  ...MOUNT_OPTIONS,
  ...TIMEOUT_OPTION,
  ...ATTACH_OPTIONS,
};

export const command: Command = {
  title: "Attach files while a command runs, and detach them even if it fails.",
  examples: `loopdev run disk.img -- sh -c 'mkfs.ext4 $LOOPDEV'
loopdev run -r a.img b.img -- sh -c 'cmp $LOOPDEV'
loopdev run --mount /mnt disk.img -- cp motd /mnt/etc/`,
  options: OPTIONS,
  notes:
    `COMMAND finds the devices in $LOOPDEV, in the order of the files, separated by spaces.
The exit status is that of COMMAND: 128 plus the number of the signal that ended it, 127 if
there is no such command, 126 if it cannot be executed. It is 1 if a device could not be
attached or detached. An interrupt goes to COMMAND: the devices are detached when COMMAND
has ended, or by the kernel if this process is killed. If other users have a device open then,
they are named after one second; from then on, an interrupt ends the wait, and the kernel
detaches the device at the last close. Without COMMAND, $SHELL is run. With
--partscan, the partitions exist when COMMAND starts.

With --mount, the file system of FILE, or of its --partition, is mounted on DIR in a new
mount namespace. Only COMMAND and the programs that it starts see it. It is unmounted when
COMMAND has ended and nobody uses a file on it: programs that are still running then see
DIR as it was before. Nothing stays, even after kill -9: the mount and the device are then
released when the last process that COMMAND started has ended.

Permissions: deno run --allow-ffi --allow-run, and usually root.`,
  run,
};

/** A program and its arguments. */
type Words = readonly [program: string, ...args: string[]];

function isCommand(words: readonly string[]): words is Words {
  return words.length > 0;
}

/** The user's shell. A shell finds its name, because Deno needs a permission for the environment. */
const SHELL: Words = ["sh", "-c", 'exec "${SHELL:-sh}"'];

async function run(args: string[]): Promise<number> {
  const separator = args.indexOf("--");
  const end = separator < 0 ? args.length : separator;
  // Deno cannot pass on words that are not UTF-8. They would name other files.
  const words = args.slice(end + 1).map(exact);
  const [program, ...programArgs] = isCommand(words) ? words : SHELL;
  const given = parse(args.slice(0, end), OPTIONS);
  const files = given.operands.map(fileOf);
  const options = attachOptions(given, files.length);
  const place = mountPlace(given, files.length);
  const timeout = timeoutIn(given);

  let status = 0;
  try {
    // Signals that ask this process to end go to the command, until all is detached.
    await using signals = new SignalForwarder();
    const { signal } = signals;
    await using devices = new AsyncDisposableStack();
    const paths: string[] = [];
    for (const file of files) {
      const blockSize = options.blockSize ??
        (place === undefined ? undefined : "probe");
      const device = await attach(file, {
        ...options,
        readOnly: options.readOnly || place?.readOnly,
        blockSize,
        detachTimeout: timeout,
        signal,
      });
      const wait = waitForDevice(device.minor, timeout);
      devices.defer(
        untilReleased(wait, signals, () => device[Symbol.asyncDispose]()),
      );
      warnAboutFile(device.loop, file);
      if (options.partscan) await device.partitions({ signal });
      if (place !== undefined) {
        const mounted = await mountFor(device, place, { timeout, signal })
          .catch((error) => {
            throw inWordsOfFile(error, device.path, file);
          });
        const wait = waitForMount(
          mounted,
          timeout,
          "it stays mounted for them",
        );
        devices.defer(untilReleased(wait, signals, () => mounted.dispose()));
      }
      paths.push(device.path);
    }
    await handlersHaveRun();
    signal.throwIfAborted();
    status = await runCommand(program, programArgs, paths.join(" "), signals);
  } catch (error) {
    const failed = report(error);
    const isMissing = error instanceof LoopError && error.errno === ENOENT;
    if (isMissing && separator < 0 && files.length > 1) {
      fail("the command comes after --: loopdev run FILE... -- COMMAND...");
    }
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
    const name = Object.keys(MOUNT_OPTIONS)
      .find((name) => given.value(name) !== undefined);
    if (name === undefined) return undefined;
    throw new UsageError(`--${name} is for --mount`);
  }
  if (fileCount > 1) throw new UsageError("--mount takes one FILE");
  return { directory: fileOf(directory), ...mountOptions(given) };
}

async function mountFor(
  device: Attachment,
  { directory, ...options }: MountPlace,
  { timeout, signal }: WaitOptions,
): Promise<MountedFileSystem> {
  const { mountInNamespace } = await import("../mount_namespace.ts");
  const request = { ...options, signal };
  return await mountInNamespace(device, directory, request, timeout);
}

/** Returns a function that ends the use of a resource, and prints whom it waits for. */
function untilReleased(
  wait: Wait,
  signals: AsyncDisposable,
  end: () => Promise<void>,
): () => Promise<void> {
  const whoUses = async () => {
    let isUsed = true; // also if the search fails
    try {
      const who = await wait.whoUses();
      isUsed = who.length > 0;
      return who;
    } finally {
      // From now on, an interrupt ends this program.
      if (isUsed) await signals[Symbol.asyncDispose]();
    }
  };
  return async () => await withWaitingMessage({ ...wait, whoUses }, end);
}

/** Exit statuses of a shell for a command that it cannot run. */
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
  return (await child.status).code; // 128 plus the number of the signal that ended it
}

/** Returns the reason a command cannot be executed, without additions of the runtime. */
function reason({ message }: Error): string {
  return message.replace(/^Failed to spawn '.*': /s, "")
    .replace(/ \(os error \d+\)$/, "").toLowerCase();
}

/** Passes signals that would end this process on to the command. Before the command starts, they abort. */
class SignalForwarder implements AsyncDisposable {
  static readonly #FROM_TERMINAL: readonly EndingSignal[] = [
    "SIGINT",
    "SIGQUIT",
  ];
  /** Time in milliseconds by which a signal to the whole group may reach the witness later. */
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

  /** Signal that is aborted if this process is asked to end before the command starts. */
  get signal(): AbortSignal {
    return this.#interrupt.signal;
  }

  /** Passes on signals from now on, and those that arrived while the command was started. */
  forwardTo(child: Deno.ChildProcess): void {
    this.#child = child;
    this.#callWitness();
  }

  /** Starts the witness, after the command: a signal in between arrives twice rather than never. */
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
      // The command has ended.
    }
  }

  /** Returns `true` if the command also gets the signal, because a terminal sent it to the whole group. */
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
    if (this.#witnesses.disposed) return true; // the command has ended
    if (!witness.isSignalled()) return false;
    if (this.#witness === witness) this.#callWitness();
    return true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#witnesses.disposeAsync();
    this.#handler[Symbol.dispose]();
  }
}
