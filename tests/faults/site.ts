/**
 * The setting for injecting faults: images, a child that works on them, and a device of
 * another program.
 */
import { assert, assertEquals } from "@std/assert";
import {
  attribute,
  boundDevices,
  diskSequenceOf,
  runOk,
  Scratch,
  Undo,
} from "../device/support.ts";
import type { Answer } from "./child.ts";
import { Child } from "./harness.ts";

/** Size of the images. */
export const IMAGE_SIZE: number = 1 << 20;

/** A device of another program, which must not change. */
class Victim implements Disposable {
  readonly #scratch: Scratch;
  readonly #device: string;
  readonly #before: unknown;
  readonly #detach: Undo;

  constructor(scratch: Scratch) {
    this.#scratch = scratch;
    const path = scratch.image(IMAGE_SIZE, "victim");
    Deno.writeFileSync(path, new Uint8Array(IMAGE_SIZE).fill(0x7e));
    this.#device = runOk("losetup", "--find", "--show", path);
    this.#detach = new Undo(() => runOk("losetup", "-d", this.#device));
    this.#before = this.#state();
  }

  #state(): unknown {
    const name = this.#device.replace("/dev/", "");
    return [
      attribute(name, "loop/backing_file"),
      attribute(name, "loop/autoclear"),
      diskSequenceOf(name),
    ];
  }

  check(): void {
    assertEquals(this.#state(), this.#before);
    const content = Deno.readFileSync(`${this.#scratch.path}/victim`);
    assert(content.every((byte) => byte === 0x7e), "the victim was changed");
  }

  [Symbol.dispose](): void {
    this.#detach[Symbol.dispose]();
  }
}

/** Creates an image with two partitions. */
function tableImage(path: string): Uint8Array {
  Deno.writeFileSync(path, new Uint8Array(4 * IMAGE_SIZE));
  runOk(
    "bash",
    "-c",
    `printf 'label: gpt\nsize=1M\nsize=1M\n' | sfdisk --quiet '${path}'`,
  );
  return Deno.readFileSync(path);
}

/** Creates an image with an ext4. */
function fileSystemImage(path: string): Uint8Array {
  Deno.writeFileSync(path, new Uint8Array(2 * IMAGE_SIZE));
  runOk("mkfs.ext4", "-q", "-F", path);
  return Deno.readFileSync(path);
}

/** A directory with images and a victim, and the child that works there. */
export class Site implements AsyncDisposable {
  readonly scratch = new Scratch();
  readonly files = {
    path: `${this.scratch.path}/first.img`,
    second: `${this.scratch.path}/second.img`,
    partitioned: `${this.scratch.path}/partitioned.img`,
    nodes: `${this.scratch.path}/nodes`,
    mountable: `${this.scratch.path}/mountable.img`,
    target: `${this.scratch.path}/target`,
  };
  readonly #table = tableImage(`${this.scratch.path}/table`);
  readonly #fileSystem = fileSystemImage(`${this.scratch.path}/ext4`);
  readonly victim = new Victim(this.scratch);
  child = new Child();

  /** Returns the devices of the images. */
  devices(): string[] {
    return boundDevices()
      .filter(({ file }) => Object.values(this.files).includes(file))
      .map(({ name }) => name);
  }

  /** Creates fresh images. */
  async setUp(name: string): Promise<void> {
    const { path, second, partitioned, nodes, mountable, target } = this.files;
    Deno.writeFileSync(path, new Uint8Array(IMAGE_SIZE));
    Deno.writeFileSync(second, new Uint8Array(IMAGE_SIZE));
    Deno.writeFileSync(partitioned, this.#table);
    Deno.mkdirSync(nodes, { recursive: true });
    Deno.writeFileSync(mountable, this.#fileSystem);
    Deno.mkdirSync(target, { recursive: true });
    const answer = await this.tell("setup", name);
    assert(answer?.ok, `${name}: ${JSON.stringify(answer)}`);
  }

  tell(step: string, name: string): Promise<Answer | undefined> {
    return this.child.tell({ step, name, files: this.files });
  }

  /** Whether something is mounted on the target. */
  get isMounted(): boolean {
    return Deno.readTextFileSync("/proc/self/mountinfo")
      .includes(` ${this.files.target} `);
  }

  traced(
    name: string,
    injection?: string,
    threads?: "first" | "others",
  ): Promise<{ answer: Answer | undefined; trace: string }> {
    return this.child.tellTraced(
      { step: "run", name, files: this.files },
      injection,
      `${this.scratch.path}/trace`,
      threads,
    );
  }

  async restart(): Promise<void> {
    await this.child[Symbol.asyncDispose]();
    this.child = new Child();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.child[Symbol.asyncDispose]();
    this.victim[Symbol.dispose]();
    this.scratch[Symbol.dispose]();
  }
}
