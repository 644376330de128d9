/**
 * Resources shared by the cases: directories, devices and programs, all removed at the
 * end.
 */
import { attach, type Attachment, type AttachOptions } from "@loopdev/loopdev";
import { boundDevices } from "../tests/device/support.ts";
import { callsOfCycle } from "./calls.ts";
import { OwnDevices } from "./devices.ts";
import { killPrograms } from "./program.ts";

/** A directory for images. */
export interface Directory {
  readonly path: string;
  /** Its file system: `tmpfs`, `ext4` … */
  readonly type: string;
}

/** All resources of the cases. Disposal removes them, whatever happened. */
export class World implements AsyncDisposable {
  /** `true` for fewer repetitions. */
  readonly quick: boolean;
  /** A directory in memory. */
  readonly memory: Directory;
  /** A directory on a disk, or on what the machine has. */
  readonly disk: Directory;
  /** Measurements that were not possible, and the reasons. */
  readonly remarks: string[] = [];
  readonly #undo = new AsyncDisposableStack();

  constructor(quick: boolean) {
    this.quick = quick;
    this.memory = this.#directory("/dev/shm");
    this.disk = this.#directory();
  }

  #directory(parent?: string): Directory {
    const path = Deno.realPathSync(
      Deno.makeTempDirSync({
        prefix: "loopdev-bench-",
        ...(parent !== undefined && { dir: parent }),
      }),
    );
    this.#undo.defer(() => Deno.remove(path, { recursive: true }));
    const type = output("stat", "--file-system", "--format=%T", path);
    return { path, type: type === "ext2/ext3" ? "ext4" : type };
  }

  /** Detaches devices that killed programs left attached to our own files. */
  #detachOurs(): void {
    for (const { name, file } of boundDevices()) {
      const isOurs = file.startsWith(`${this.memory.path}/`) ||
        file.startsWith(`${this.disk.path}/`);
      if (isOurs) output("losetup", "--detach", `/dev/${name}`);
    }
  }

  /** Returns the number of repetitions. */
  times(full: number, quick: number): number {
    return this.quick ? quick : full;
  }

  /** Creates a sparse file. */
  image(directory: Directory, size: number = 1 << 20): string {
    const path = `${directory.path}/${crypto.randomUUID()}.img`;
    Deno.createSync(path).close();
    Deno.truncateSync(path, size);
    return path;
  }

  /** Creates devices, which are removed at the end at the latest. */
  ownDevices(): OwnDevices {
    return this.#undo.use(new OwnDevices());
  }

  /** Attaches a file until the end at the latest. */
  async attach(file: string, options?: AttachOptions): Promise<Attachment> {
    return this.#undo.use(await attach(file, options));
  }

  /**
   * Counts the system calls of each program in a cycle; returns nothing if strace is
   * missing.
   */
  countCalls(programs: Record<string, string[]>): Record<string, number> {
    try {
      return Object.fromEntries(
        Object.entries(programs)
          .map(([name, command]) => [name, callsOfCycle(command)]),
      );
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      this.remarks.push("System calls were not counted: strace is missing");
      return {};
    }
  }

  /** Builds a program, or records why it cannot be built. */
  tryToBuild(what: string, build: () => string): string | undefined {
    try {
      return build();
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.remarks.push(`${what} is left out: ${why}`);
      return undefined;
    }
  }

  /** Installs the command line in the directory of this run, and returns that of its programs. */
  installed(): string {
    const root = `${this.disk.path}/installed`;
    const { success, stderr } = new Deno.Command(Deno.execPath(), {
      args: ["task", "--quiet", "install"],
      cwd: new URL("..", import.meta.url).pathname,
      env: { DENO_INSTALL_ROOT: root },
    }).outputSync();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
    return `${root}/bin`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    killPrograms();
    this.#detachOurs();
    await this.#undo.disposeAsync();
  }
}

/** Returns the output of a command. */
export function output(command: string, ...args: string[]): string {
  const { stdout } = new Deno.Command(command, { args, stderr: "inherit" })
    .outputSync();
  return new TextDecoder().decode(stdout).trim();
}
