/**
 * What the tests on real devices share. Each test makes its own files and devices,
 * and looks only at those: other programs attach and detach on the same machine.
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

/** Why the tests cannot run here; `undefined` when they can. */
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
 * `LOOPDEV_TEST_FEWER=20`: tests that do something many times do it 20 times less
 * often. For emulated machines, see `tests/kernels`; nowhere else.
 */
const FEWER = Number(Deno.env.get("LOOPDEV_TEST_FEWER") ?? 1);

/** How often to do what a test does so many times. */
export function times(count: number): number {
  return Math.ceil(count / FEWER);
}

/**
 * A test that comes to the same on any kernel: on emulated machines, which are slow, it
 * runs only when `LOOPDEV_TEST_ALL` is set. Gives its name and options.
 */
export function onAnyKernel(
  name: string,
  { ignore = false } = {},
): NameAndOptions {
  return sameOnAnyKernel === undefined
    ? [name, { ignore }]
    : unless(sameOnAnyKernel, name);
}

/** Why such a test does not run; `undefined` when it does. */
export const sameOnAnyKernel: string | undefined =
  FEWER === 1 || Deno.env.has("LOOPDEV_TEST_ALL")
    ? undefined
    : "it comes to the same on any kernel";

type NameAndOptions = [name: string, options: { ignore: boolean }];

/** A test that does not run where there is a reason. Gives its name, with the reason, and its options. */
export function unless(
  reason: string | undefined,
  name: string,
): NameAndOptions {
  return [
    reason === undefined ? name : `${name} (skipped: ${reason})`,
    { ignore: reason !== undefined },
  ];
}

/** Why a test with this program does not run; `undefined` when it is there. */
export function lacking(program: string): string | undefined {
  return run("sh", "-c", `command -v ${program}`).code === 0
    ? undefined
    : `there is no ${program}`;
}

/** Why a test with names that are not UTF-8 does not run: old versions of Deno refuse such arguments. */
export function lackingByteArguments(): string | undefined {
  const help = `'${Deno.execPath()}' eval 0 $'\\xff'`;
  return run("bash", "-c", help).code === 0
    ? undefined
    : "this Deno takes no arguments that are not UTF-8";
}

/** The numbers from 1 to `count`, or evenly spread ones of them, that begin anywhere. */
export function* numbersTo(count: number): Generator<number> {
  const first = Math.floor(Math.random() * Math.min(FEWER, count));
  for (let number = first; number < count; number += FEWER) yield number + 1;
}

/**
 * Whether udev is running. It opens a device whenever somebody who could write closes
 * it, and the kernel detaches when udev lets go.
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
 * Whether something is so, or becomes so: udev, and all who list devices by opening
 * them, make the kernel detach a moment later.
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

/** A directory of a test, with files that disappear with it. */
export class Scratch implements Disposable {
  /** The directory, without symbolic links. */
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

  /** A file of so many zero bytes. */
  image(size: number = 1 << 20, name = "disk.img"): string {
    const path = `${this.path}/${name}`;
    Deno.createSync(path).close();
    Deno.truncateSync(path, size);
    return path;
  }

  /** The devices that files of this directory are attached to, from sysfs. */
  devices(): string[] {
    return boundDevices()
      .filter(({ file }) => file.startsWith(`${this.path}/`))
      .map(({ name }) => `/dev/${name}`);
  }

  /** Nothing may be attached any more, and no descriptor be left. */
  check(): void {
    isSoon(() => this.devices().length === 0);
    assertEquals(this.devices(), [], "a device is still attached");
    assertEquals(this.leaked(), [], "a descriptor leaked");
  }

  /** Descriptors that were opened meanwhile and matter here, by what they lead to. */
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

/** Runs a test with a directory of its own, and checks that it left nothing. */
export function withScratch(
  test: (scratch: Scratch) => void | Promise<void>,
): () => Promise<void> {
  return async () => {
    using scratch = new Scratch();
    await test(scratch);
    scratch.check();
  };
}

/** What the open descriptors lead to, as far as the library opens such things. */
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

/** The attached devices and their files, read from sysfs by Deno. */
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

/** An attribute of a device in sysfs. */
export function attribute(name: string, attribute: string): string {
  return Deno.readTextFileSync(`/sys/block/${name}/${attribute}`).trim();
}

/** The disk sequence number of a device; 0 where the kernel has none. */
export function diskSequenceOf(name: string): number {
  return exists(`/sys/block/${name}/diskseq`)
    ? Number(attribute(name, "diskseq"))
    : 0;
}

/** Why a test that needs disk sequence numbers does not run; `undefined` when it does. */
export const noDiskSequence: string | undefined =
  reasonToSkip !== undefined || [...Deno.readDirSync("/sys/block")]
      .some(({ name }) => exists(`/sys/block/${name}/diskseq`))
    ? undefined
    : "there are no disk sequence numbers before Linux 5.15";

/** What a command printed. */
export interface Output {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a command to its end. */
export function run(command: string, ...args: string[]): Output {
  const output = new Deno.Command(command, { args }).outputSync();
  return {
    code: output.code,
    stdout: new TextDecoder().decode(output.stdout),
    stderr: new TextDecoder().decode(output.stderr),
  };
}

/** Runs a command that must succeed; what it printed. */
export function runOk(command: string, ...args: string[]): string {
  const { code, stdout, stderr } = run(command, ...args);
  assert(code === 0, `${command} ${args.join(" ")}: ${stderr}`);
  return stdout.trim();
}

/** The program; `LOOPDEV_TEST_CLI` names another form of it, a bundle. */
export const CLI: string = Deno.env.get("LOOPDEV_TEST_CLI") ??
  new URL("../../cli.ts", import.meta.url).pathname;

/** Runs the command line with the permission that it asks for, and no other. */
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
 * A device of the test's own: of a high number, so that nobody who looks for a free
 * one gets it. Removed at the end.
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

  /** Whether a file is attached to it. */
  get isBound(): boolean {
    return boundDevices().some(({ name }) => name === this.name);
  }

  /** Whether nothing is attached to it any more. */
  get isFree(): boolean {
    if (!isSoon(() => !this.isBound)) return false;
    Deno.openSync(this.path).close(); // which waits for others who are closing it
    return true;
  }

  [Symbol.dispose](): void {
    if (this.isBound) run("losetup", "-d", this.path);
    removeDevice(this.minor);
  }
}

/** The partitions that the kernel has for a disk, as `loop3p1`. */
export function partitionNames(disk: string): string[] {
  return Array.from(Deno.readDirSync(`/sys/block/${disk}`), ({ name }) => name)
    .filter((name) => /p\d+$/.test(name));
}

/** Removes a device of the test's own, which others may have open for a moment. */
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

/** Holds a device exclusively, as a mount does. */
export function holdExclusively(path: string): FileDescriptor {
  const fd = openAt(AT_FDCWD, cString(path), O_RDWR | O_EXCL);
  assert(fd >= 0, `cannot hold ${path}: ${-fd}`);
  return new FileDescriptor(fd);
}

/** Something that a test has set up, and that is undone once, however it ends. */
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

/** Mounts until it is disposed of: the arguments of mount, the directory last. */
export function mounted(...args: string[]): Undo {
  runOk("mount", ...args);
  return new Undo(() => runOk("umount", args.at(-1)!));
}

/** The lines of a stream. */
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
 * Why no partitions are left of an earlier owner; `undefined` when they are. Linux 7.2
 * drops those that were added by `BLKPG` at the detach; kernels before did not.
 */
export function dropsPartitions(): string | undefined {
  if (reasonToSkip !== undefined) return undefined;
  using scratch = new Scratch();
  using own = new OwnDevice();
  runOk("losetup", own.path, scratch.image());
  runOk("addpart", own.path, "1", "8", "8");
  losetupDetach(own.path);
  // Beside udev some kernels remove them at the first open: the test knows.
  return hasUdev || partitionNames(own.name).length > 0
    ? undefined
    : "this kernel drops partitions at a detach";
}
