/**
 * The environment for trying command lines of losetup: devices with high numbers, and
 * files in their own directory. In this mount namespace, `/sys/block`, where losetup
 * looks for devices, contains only those devices.
 */
import {
  detach,
  list,
  LO_FLAGS_AUTOCLEAR,
  LO_FLAGS_DIRECT_IO,
  LO_FLAGS_PARTSCAN,
  LO_FLAGS_READ_ONLY,
  Loop,
  LoopControl,
  type LoopDevice,
  LoopError,
  openFile,
} from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { BLKROSET } from "../../lib/sys/blk_uapi.ts";
import { urlOf } from "../../lib/sys/process_arguments.ts";
import { toBytes } from "../../lib/losetup/byte_string.ts";
import { openLoop } from "../../lib/kernel/nodes.ts";
import { ioctlPointer } from "../../lib/sys/libc.ts";
import {
  holdExclusively,
  OwnDevice,
  run,
  runOk,
  Scratch,
} from "../device/support.ts";

/** Names `$A`, `$B`, `$C` for devices. */
export type Key = "A" | "B" | "C";
const KEYS: readonly Key[] = ["A", "B", "C"];

const MiB = 1 << 20;
const BLOCK = "/sys/devices/virtual/block";

/** Options for attaching a device before a command line is run. */
export interface Attached {
  offset?: number;
  sizelimit?: number;
  blockSize?: number;
  readOnly?: boolean;
  autoclear?: boolean;
  partscan?: boolean;
  directIo?: boolean;
  reference?: string;
}

/** Files and devices, and the changes made to them. */
export class World implements AsyncDisposable {
  /** Resources removed at the end, even if creating them fails. */
  readonly #made = new DisposableStack();
  readonly #scratch = this.#made.use(new Scratch());
  readonly #devices: Record<Key, OwnDevice>;
  /** A number without a device. */
  readonly #missing: number;
  /** Changes undone after each command line. */
  #held = new DisposableStack();

  constructor() {
    try {
      this.#devices = {
        A: this.#made.use(new OwnDevice()),
        B: this.#made.use(new OwnDevice()),
        C: this.#made.use(new OwnDevice()),
      };
      using unused = new OwnDevice();
      this.#missing = unused.minor;
      this.#hideOtherDevices();
      this.#makeFiles();
    } catch (error) {
      this.#made.dispose();
      throw error;
    }
  }

  /** The working directory. */
  get path(): string {
    return this.#scratch.path;
  }

  #hideOtherDevices(): void {
    runOk("mount", "-t", "tmpfs", "none", "/sys/block");
    for (const { name } of Object.values(this.#devices)) {
      Deno.symlinkSync(
        `../devices/virtual/block/${name}`,
        `/sys/block/${name}`,
      );
    }
    this.checkHidden();
  }

  /**
   * Throws unless other devices are hidden, before running anything that detaches all
   * devices.
   */
  checkHidden(): void {
    assertEquals(
      Array.from(Deno.readDirSync("/sys/block"), ({ name }) => name).sort(),
      Object.values(this.#devices).map(({ name }) => name).sort(),
    );
  }

  #makeFiles(): void {
    const { path } = this;
    Deno.chmodSync(path, 0o755);
    this.#scratch.image(10 * MiB);
    this.#scratch.image(4 * MiB, "other.img");
    this.#scratch.image(1000, "odd.img");
    this.#scratch.image(100, "tiny.img");
    this.#scratch.image(0, "empty.img");
    this.#scratch.image(MiB, "secret.img");
    Deno.chmodSync(`${path}/secret.img`, 0o600);
    Deno.symlinkSync("disk.img", `${path}/link.img`);
    Deno.linkSync(`${path}/disk.img`, `${path}/hard.img`);
    Deno.mkdirSync(`${path}/directory`);
    Deno.mkdirSync(`${path}/${"deep/".repeat(30)}`, { recursive: true });
    for (const name of ODD_NAMES) {
      this.#bash(`truncate -s 1M -- "$name"`, name);
    }
    this.#scratch.image(8 * MiB, "parts.img");
    this.#bash("echo 2048,4096 | sfdisk -q parts.img");
    this.#bash(
      "mkfifo fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'",
    );
    const { A } = this.#devices;
    this.#bash(
      `cp -a ${A.path} node; ln -s ${A.path} devlink; cp -a ${A.path} directory/${A.name}; cp -a ${A.path} ${
        "deep/".repeat(30)
      }node`,
    );
    this.#bash(
      `mknod stale b 7 ${this.#missing}; chmod 666 *.img fifo; chmod 600 secret.img`,
    );
    this.#made.defer(() => run("umount", `${path}/ro`));
    this.#bash(
      "mkdir ro; mount -t tmpfs none ro; truncate -s 1M ro/disk.img; mount -o remount,ro ro",
    );
  }

  #bash(script: string, name = ""): void {
    const bytes = Array.from(
      name,
      (byte) => `\\x${byte.charCodeAt(0).toString(16).padStart(2, "0")}`,
    );
    runOk(
      "bash",
      "-c",
      `set -e; cd '${this.path}'; name=$'${bytes.join("")}'; ${script}`,
    );
  }

  /** Replaces `$A`, `$PWD` and the like in a command line. */
  expand(text: string): string {
    const { A, B, C } = this.#devices;
    const values: Record<string, string> = {
      A: A.path,
      B: B.path,
      C: C.path,
      a: A.name,
      b: B.name,
      D: `/dev/loop${this.#missing}`,
      W: `/dev/loop${2 ** 32 + A.minor}`,
      X: `/dev/loop${2 ** 32 + this.#missing}`,
      P: `${A.path}p1`,
      PWD: this.path,
    };
    return text.replace(/\$(\w+)/g, (_, name) => values[name]!);
  }

  /**
   * Normalizes devices in the output that the kernel chose, which other programs may
   * also have.
   */
  normalize(output: string): string {
    return output.replace(/\/dev\/loop\d{1,3}\b/g, "/dev/loop<free>");
  }

  /** Attaches a file to a device. */
  attach(key: Key, file: string, options: Attached = {}): void {
    const path = file.startsWith("/") ? file : `${this.path}/${file}`;
    using backing = openFile(path, {
      readOnly: options.readOnly,
      directIo: options.directIo,
    });
    using loop = new Loop(this.#devices[key].minor, {
      readOnly: options.readOnly,
    });
    loop.configure(backing.fd, { reference: path.slice(0, 63), ...options });
  }

  /** Attaches a file with any name, one character for each byte. */
  attachBytes(key: Key, file: string): void {
    using backing = openFile(urlOf(toBytes(`${this.path}/${file}`)));
    using loop = new Loop(this.#devices[key].minor);
    loop.configure(backing.fd);
  }

  /** Attaches a device to a device. */
  nest(key: Key, lower: Key): void {
    this.attach(key, this.#devices[lower].path);
  }

  /**
   * Attaches a file with a partition and creates it, even if the kernel reads no
   * tables.
   */
  attachPartition(key: Key): void {
    this.attach(key, "parts.img", { partscan: true });
    runOk("partx", "--update", this.#devices[key].path);
  }

  /** Keeps a device open, which delays its detach. */
  hold(key: Key): void {
    this.#held.use(new Loop(this.#devices[key].minor, { readOnly: true }));
  }

  /** Holds a device exclusively, like a mount. */
  holdExclusively(key: Key): void {
    this.#held.use(holdExclusively(this.#devices[key].path));
  }

  /** Marks a device for clearing. It must be held open. */
  clear(key: Key): void {
    using loop = new Loop(this.#devices[key].minor);
    loop.clearFd();
  }

  /** Hides the node of an existing device. */
  loseNode(key: Key): void {
    const { path, minor } = this.#devices[key];
    // Renamed, because a new node would not be the kernel's and would outlive the
    // device.
    const elsewhere = `/dev/.lost-${minor}`;
    Deno.renameSync(path, elsewhere);
    this.#held.defer(() => Deno.renameSync(elsewhere, path));
  }

  /** Makes a device read-only like an earlier user: `blockdev --setro`. */
  makeReadOnly(key: Key): void {
    runOk("blockdev", "--setro", this.#devices[key].path);
  }

  /** Makes a device accessible to every user. */
  share(key: Key): void {
    const { path } = this.#devices[key];
    Deno.chmodSync(path, 0o666);
    this.#held.defer(() => Deno.chmodSync(path, 0o600));
  }

  /** Makes a file larger until the command line has been run. */
  grow(file: string, size: number): void {
    const path = `${this.path}/${file}`;
    const before = Deno.statSync(path).size;
    Deno.truncateSync(path, size);
    this.#held.defer(() => Deno.truncateSync(path, before));
  }

  /** Attaches a file that is deleted while it is attached. */
  attachDeleted(key: Key, file: string): void {
    this.#scratch.image(MiB, file);
    this.attach(key, file);
    Deno.removeSync(`${this.path}/${file}`);
  }

  /** Creates a directory `/dev/loop`, as on old systems, in our own `/dev`. */
  makeDevLoop(): void {
    const nodes = Object.values(this.#devices).map(({ path }) => path);
    this.#bash(
      `mkdir dev; mount -t tmpfs none dev
       cp -a /dev/null /dev/urandom /dev/loop-control ${nodes.join(" ")} dev
       mkdir dev/loop; mount --move dev /dev; rmdir dev`,
    );
    this.#held.defer(() => runOk("umount", "--lazy", "/dev"));
  }

  /** Returns the state of the devices. */
  state(): Record<string, unknown>[] {
    const own = new Map<string, string>(
      KEYS.map((key) => [this.#devices[key].name, key]),
    );
    own.set(`loop${this.#missing}`, "D");
    return Array.from(Deno.readDirSync(BLOCK), ({ name }) => name)
      .filter((name) => own.has(name) || this.#isOurs(name))
      .map((name) => {
        const minor = Number(name.slice("loop".length));
        const key = own.get(name) ?? "free";
        const capacity = read(`${BLOCK}/${name}/size`);
        const ro = read(`${BLOCK}/${name}/ro`);
        if (read(`${BLOCK}/${name}/loop/backing_file`) === undefined) {
          return { key, isBound: false };
        }
        return {
          key,
          isBound: true,
          capacity,
          ro,
          ...status(minor, this.path),
        };
      })
      .sort((one, other) => one.key < other.key ? -1 : 1);
  }

  #isOurs(name: string): boolean {
    return read(`${BLOCK}/${name}/loop/backing_file`)
      ?.startsWith(this.path) ?? false;
  }

  /** Undoes all changes, so that the next command line starts from the same state. */
  async reset(): Promise<void> {
    this.#held.dispose();
    this.#held = new DisposableStack();
    const bound = list().filter(({ name, backingFile }) =>
      this.#isOwn(name) || backingFile.startsWith(this.path)
    );
    // Upper devices before lower ones. Programs that list all devices may have one open
    // for a moment.
    const isUpper = ({ backingFile }: LoopDevice) =>
      backingFile.startsWith("/dev/loop");
    bound.sort((a, b) => Number(isUpper(b)) - Number(isUpper(a)));
    for (const device of bound) {
      try {
        await detach(device);
      } catch (error) {
        if (!(error instanceof LoopError && error.code === "ENXIO")) {
          throw error;
        }
      }
    }
    for (const { minor } of Object.values(this.#devices)) {
      using loop = new Loop(minor);
      ioctlPointer(loop.fd, BLKROSET, new Uint8Array(4));
    }
    if (read(`${BLOCK}/loop${this.#missing}/dev`) !== undefined) {
      using control = new LoopControl();
      control.remove(this.#missing);
    }
    assert(this.state().every(({ isBound }) => !isBound));
  }

  #isOwn(name: string): boolean {
    return name === `loop${this.#missing}` ||
      Object.values(this.#devices).some((device) => device.name === name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.reset();
    } finally {
      this.#made.dispose();
    }
  }
}

/** Names of files of 1 MiB, with one character for each byte. */
export const ODD_NAMES: readonly string[] = [
  "a b",
  "new\nline",
  "tab\t",
  'quo"te',
  "back\\slash",
  "\\x41",
  "-dash",
  "\x1b[31m",
  "\x7f",
  "\xc3\xbcmlaut",
  "\xe7\x94\xbb\xe5\x83\x8f",
  "e\xcc\x81",
  "\xff",
  "\xc3",
  "a\xff\xfeb",
  "\xef\xbf\xbd",
  "\xc2\x85",
  "\xe2\x80\xa8",
  "\xf0\x9f\x92\xbe",
  "%41",
  "long".repeat(40),
  "gone (deleted)",
];

function read(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path).trimEnd();
  } catch {
    return undefined; // the attribute of a device without a file
  }
}

/** Returns the status of a device without values that differ between runs. */
function status(minor: number, directory: string): Record<string, unknown> {
  using loop = openLoop(minor, { readOnly: true });
  const { offset, sizelimit, flags, fileName } = loop.getInfo();
  const flag = (bit: number) => (flags & bit) !== 0;
  return {
    offset: `${offset}`,
    sizelimit: `${sizelimit}`,
    blockSize: loop.getBlockSize(),
    isReadOnly: flag(LO_FLAGS_READ_ONLY),
    isAutoclear: flag(LO_FLAGS_AUTOCLEAR),
    isPartscan: flag(LO_FLAGS_PARTSCAN),
    isDirectIo: flag(LO_FLAGS_DIRECT_IO),
    reference: fileName,
    backingFile: read(`${BLOCK}/loop${minor}/loop/backing_file`)
      ?.replace(directory, ""),
  };
}
