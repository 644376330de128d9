/**
 * Helpers for the tests on real devices. Each test creates its own files and devices
 * and examines only those, because other programs attach and detach on the same
 * machine.
 */
import { FileDescriptor, LoopControl, LoopError } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import {
  AT_FDCWD,
  cString,
  O_EXCL,
  O_RDWR,
  openAt,
} from "../../lib/sys/libc.ts";

/** Reason to skip the tests; `undefined` if they can run. */
export const reasonToSkip: string | undefined = findReason();

function findReason(): string | undefined {
  if (Deno.build.os !== "linux") return "there are no loop devices";
  if (Deno.uid() !== 0) return "attaching needs root";
  try {
    Deno.statSync("/dev/loop-control");
  } catch {
    return "there is no /dev/loop-control";
  }
  return undefined;
}

/** Options of a group of tests that needs devices. */
export const onDevices: { ignore: boolean } = {
  ignore: reasonToSkip !== undefined,
};

if (reasonToSkip !== undefined) console.log(`Skipped: ${reasonToSkip}`);

/**
 * `LOOPDEV_TEST_FEWER=20` divides the repetitions of a test by 20. It is meant only for
 * emulated machines, see `tests/kernels`.
 */
const FEWER = Number(Deno.env.get("LOOPDEV_TEST_FEWER") ?? 1);

/** Returns the number of repetitions. */
export function times(count: number): number {
  return Math.ceil(count / FEWER);
}

/**
 * Declares a test whose result does not depend on the kernel. On emulated machines,
 * which are slow, it runs only if `LOOPDEV_TEST_ALL` is set. Returns its name and
 * options.
 */
export function onAnyKernel(
  name: string,
  { ignore = false } = {},
): NameAndOptions {
  return sameOnAnyKernel === undefined
    ? [name, { ignore }]
    : unless(sameOnAnyKernel, name);
}

/** Reason to skip such a test; `undefined` if it runs. */
export const sameOnAnyKernel: string | undefined =
  FEWER === 1 || Deno.env.has("LOOPDEV_TEST_ALL")
    ? undefined
    : "it comes to the same on any kernel";

type NameAndOptions = [name: string, options: { ignore: boolean }];

/**
 * Declares a test that is skipped if there is a reason. Returns its name, with the
 * reason, and its options.
 */
export function unless(
  reason: string | undefined,
  name: string,
): NameAndOptions {
  return [
    reason === undefined ? name : `${name} (skipped: ${reason})`,
    { ignore: reason !== undefined },
  ];
}

/**
 * Returns the reason to skip a test that needs a program, or `undefined` if the program
 * exists.
 */
export function lacking(program: string): string | undefined {
  return run("sh", "-c", `command -v ${program}`).code === 0
    ? undefined
    : `there is no ${program}`;
}

/**
 * Returns the reason to skip a test with names that are not UTF-8: old versions of Deno
 * refuse such arguments.
 */
export function lackingByteArguments(): string | undefined {
  const help = `'${Deno.execPath()}' eval 0 $'\\xff'`;
  return run("bash", "-c", help).code === 0
    ? undefined
    : "this Deno takes no arguments that are not UTF-8";
}

/** Yields the numbers from 1 to `count`, or evenly spread ones with a random start. */
export function* numbersTo(count: number): Generator<number> {
  const first = Math.floor(Math.random() * Math.min(FEWER, count));
  for (let number = first; number < count; number += FEWER) yield number + 1;
}

/**
 * `true` if udev is running. It opens a device after every close of a writable
 * descriptor, so that the kernel detaches only once udev has closed it.
 */
export const hasUdev: boolean = exists("/run/udev/control");

/** Waits until udev, where it is running, has let go of what was added. */
export function settle(): void {
  if (hasUdev) run("udevadm", "settle", "--timeout=60");
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/**
 * Waits until a condition is met, because udev and programs that list devices by
 * opening them delay a detach. Returns `false` on timeout.
 */
export function isSoon(
  condition: () => boolean,
  milliseconds = 10_000,
): boolean {
  const end = performance.now() + milliseconds;
  while (!condition()) {
    if (performance.now() > end) return false;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
  }
  return true;
}

/** A directory for one test, removed with its files. */
export class Scratch implements Disposable {
  /** The directory, with symbolic links resolved. */
  readonly path: string;
  readonly #before = descriptors();

  constructor(directory?: string) {
    this.path = Deno.realPathSync(
      Deno.makeTempDirSync({
        prefix: "loopdev-test-",
        ...(directory !== undefined && { dir: directory }),
      }),
    );
  }

  /** Creates a file of zeros. */
  image(size: number = 1 << 20, name = "disk.img"): string {
    const path = `${this.path}/${name}`;
    Deno.createSync(path).close();
    Deno.truncateSync(path, size);
    return path;
  }

  /** Returns the devices that files of this directory are attached to, from sysfs. */
  devices(): string[] {
    return boundDevices()
      .filter(({ file }) => file.startsWith(`${this.path}/`))
      .map(({ name }) => `/dev/${name}`);
  }

  /** Waits for reads on other threads: an abort does not end them, and they keep files open. */
  async settled(): Promise<void> {
    for (let tries = 0; tries < 1000 && this.leaked().length > 0; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Checks that nothing is attached and no descriptor is left. */
  check(): void {
    isSoon(() => this.devices().length === 0);
    assertEquals(this.devices(), [], "a device is still attached");
    // Tests on other threads of this process have files open for a moment.
    isSoon(() => this.leaked().length === 0);
    assertEquals(this.leaked(), [], "a descriptor leaked");
  }

  /** Returns the targets of relevant descriptors that were opened during the test. */
  leaked(): string[] {
    const before = [...this.#before];
    return descriptors().filter((target) => {
      const at = before.indexOf(target);
      if (at >= 0) before.splice(at, 1);
      return at < 0;
    });
  }

  [Symbol.dispose](): void {
    for (const device of this.devices()) run("losetup", "-d", device);
    Deno.removeSync(this.path, { recursive: true });
  }
}

/** Runs a test with its own directory, and checks that it leaves nothing behind. */
export function withScratch(
  test: (scratch: Scratch) => void | Promise<void>,
): () => Promise<void> {
  return async () => {
    using scratch = new Scratch();
    await test(scratch);
    await scratch.settled();
    scratch.check();
  };
}

/** Returns the targets of open descriptors of the kinds that the library opens. */
function descriptors(): string[] {
  const targets: string[] = [];
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      targets.push(Deno.readLinkSync(`/proc/self/fd/${name}`));
    } catch {
      // the descriptor of the listing itself
    }
  }
  return targets.filter((target) =>
    /^\/dev\/loop|^\/memfd:loopdev|loopdev-test-|^\/sys\/|\/fd$/.test(target) &&
    target !== `/proc/${Deno.pid}/fd`
  );
}

/** Returns the attached devices and their files, read from sysfs by Deno. */
export function boundDevices(): { name: string; file: string }[] {
  const found: { name: string; file: string }[] = [];
  for (const { name } of Deno.readDirSync("/sys/block")) {
    if (!name.startsWith("loop")) continue;
    try {
      const file = Deno.readTextFileSync(
        `/sys/block/${name}/loop/backing_file`,
      );
      found.push({ name, file: file.replace(/\n$/, "") });
    } catch {
      // not attached
    }
  }
  return found;
}

/** Reads an attribute of a device in sysfs. */
export function attribute(name: string, attribute: string): string {
  return Deno.readTextFileSync(`/sys/block/${name}/${attribute}`).trim();
}

/** Returns the disk sequence number of a device, or 0 if the kernel has none. */
export function diskSequenceOf(name: string): number {
  return exists(`/sys/block/${name}/diskseq`)
    ? Number(attribute(name, "diskseq"))
    : 0;
}

/** Reason to skip a test that needs disk sequence numbers; `undefined` if it runs. */
export const noDiskSequence: string | undefined =
  reasonToSkip !== undefined || [...Deno.readDirSync("/sys/block")]
      .some(({ name }) => exists(`/sys/block/${name}/diskseq`))
    ? undefined
    : "there are no disk sequence numbers before Linux 5.15";

/** Output of a command. */
export interface Output {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a command and waits for it. */
export function run(command: string, ...args: string[]): Output {
  const output = new Deno.Command(command, { args }).outputSync();
  return {
    code: output.code,
    stdout: new TextDecoder().decode(output.stdout),
    stderr: new TextDecoder().decode(output.stderr),
  };
}

/** Runs a command, throws if it fails, and returns its output. */
export function runOk(command: string, ...args: string[]): string {
  const { code, stdout, stderr } = run(command, ...args);
  assert(code === 0, `${command} ${args.join(" ")}: ${stderr}`);
  return stdout.trim();
}

/** Runs a script under strace. Returns its output, and the trace of the given system calls. */
export function traced(
  script: string,
  calls: string,
  ...options: string[]
): Output & { trace: string } {
  const log = `${script}.trace`;
  const output = run(
    "strace",
    ..."-f -qq -o".split(" "),
    ...[log, ...options, "-e", `trace=${calls}`, Deno.execPath()],
    ..."run -q --no-check --allow-ffi".split(" "),
    script,
  );
  assert(output.code === 0, output.stderr);
  return { ...output, trace: Deno.readTextFileSync(log) };
}

/** Path of the program; `LOOPDEV_TEST_CLI` names another form of it, such as a bundle. */
export const CLI: string = Deno.env.get("LOOPDEV_TEST_CLI") ??
  new URL("../../cli.ts", import.meta.url).pathname;

/** Runs the command line with exactly the permission that it requires. */
export function cli(...args: string[]): Output {
  return run(
    Deno.execPath(),
    "run",
    "--quiet",
    "--no-prompt",
    "--allow-ffi",
    CLI,
    ...args,
  );
}

/**
 * A device for one test, with a high number that is not found when looking for a free
 * one. Removed at the end.
 */
export class OwnDevice implements Disposable {
  readonly minor: number;
  readonly name: string;
  readonly path: string;

  constructor() {
    using control = new LoopControl();
    for (;;) {
      const minor = 1000 + Math.floor(Math.random() * 900000);
      try {
        this.minor = control.add(minor);
        break;
      } catch (error) {
        if (!(error instanceof LoopError && error.code === "EEXIST")) {
          throw error;
        }
      }
    }
    this.name = `loop${this.minor}`;
    this.path = `/dev/${this.name}`;
  }

  /** `true` if a file is attached to it. */
  get isBound(): boolean {
    return boundDevices().some(({ name }) => name === this.name);
  }

  /** `true` if nothing is attached to it any longer. */
  get isFree(): boolean {
    if (!isSoon(() => !this.isBound)) return false;
    Deno.openSync(this.path).close(); // waits for other processes that are closing it
    return true;
  }

  [Symbol.dispose](): void {
    if (this.isBound) run("losetup", "-d", this.path);
    removeDevice(this.minor);
  }
}

/** Returns the kernel's partitions of a disk, as `loop3p1`. */
export function partitionNames(disk: string): string[] {
  return Array.from(Deno.readDirSync(`/sys/block/${disk}`), ({ name }) => name)
    .filter((name) => /p\d+$/.test(name));
}

/** Removes a device of a test, which other processes may have open for a moment. */
export function removeDevice(minor: number): number | undefined {
  using control = new LoopControl();
  let removed: number | undefined;
  isSoon(() => {
    try {
      removed = control.remove(minor);
      return true;
    } catch {
      return false;
    }
  });
  return removed;
}

/** Detaches with losetup, which does not wait. */
export function losetupDetach(device: string): void {
  runOk("losetup", "-d", device);
  const path = `/sys/block/${device.replace("/dev/", "")}/loop`;
  assert(isSoon(() => !exists(path)), `${device} is still attached`);
}

/** Holds a device exclusively, like a mount. */
export function holdExclusively(path: string): FileDescriptor {
  const fd = openAt(AT_FDCWD, cString(path), O_RDWR | O_EXCL);
  assert(fd >= 0, `cannot hold ${path}: ${-fd}`);
  return new FileDescriptor(fd);
}

/** Something set up by a test, undone exactly once, whatever happens. */
export class Undo implements Disposable {
  #undo: (() => void) | undefined;

  constructor(undo: () => void) {
    this.#undo = undo;
  }

  [Symbol.dispose](): void {
    const undo = this.#undo;
    this.#undo = undefined;
    undo?.();
  }
}

/**
 * Mounts until it is disposed of. Takes the arguments of mount, with the directory
 * last.
 */
export function mounted(...args: string[]): Undo {
  runOk("mount", ...args);
  return new Undo(() => runOk("umount", args.at(-1)!));
}

/** Yields the lines of a stream. */
export async function* lines(
  stream: ReadableStream<Uint8Array>,
): AsyncGenerator<string> {
  let text = "";
  for await (const chunk of stream.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    for (let end; (end = text.indexOf("\n")) >= 0;) {
      yield text.slice(0, end);
      text = text.slice(end + 1);
    }
  }
}

/**
 * Returns the reason why no leftover partitions exist, or `undefined` if they do. Linux
 * 7.2 removes partitions added with `BLKPG` on detaching; earlier kernels do not.
 */
export function dropsPartitions(): string | undefined {
  if (reasonToSkip !== undefined) return undefined;
  using scratch = new Scratch();
  using own = new OwnDevice();
  runOk("losetup", own.path, scratch.image());
  runOk("addpart", own.path, "1", "8", "8");
  losetupDetach(own.path);
  // Beside udev, some kernels remove them at the first open; the test handles that.
  return hasUdev || partitionNames(own.name).length > 0
    ? undefined
    : "this kernel drops partitions at a detach";
}
