/** Helpers for tests that no other test may run beside. */
import { assertEquals } from "@std/assert";
import { reasonToSkip, run } from "../device/support.ts";

function findReason(): string | undefined {
  if (reasonToSkip !== undefined) return reasonToSkip;
  const missing = ["gcc", "python3"].find((command) =>
    run("bash", "-c", `type ${command}`).code !== 0
  );
  if (missing !== undefined) return `there is no ${missing}`;
  try {
    Deno.openSync("/dev/fuse", { read: true, write: true }).close();
  } catch {
    return "there is no /dev/fuse";
  }
  return undefined;
}

const reason = findReason();
if (reason !== undefined) console.log(`Skipped: ${reason}`);

/** Options of a group of these tests. */
export const alone: { ignore: boolean } = { ignore: reason !== undefined };

const SERVER = new URL("file_server.py", import.meta.url).pathname;

/** A program that prints a line when it is ready, and is killed at the end. */
export class Program implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
  }

  static async start(command: string, ...args: string[]): Promise<Program> {
    const child = new Deno.Command(command, {
      args,
      stdin: "null",
      stdout: "piped",
    }).spawn();
    const output = child.stdout.getReader();
    const { value } = await output.read();
    await output.cancel();
    assertEquals(
      new TextDecoder().decode(value).trim().split("\n").at(-1),
      "ready",
      command,
    );
    return new Program(child);
  }

  get pid(): number {
    return this.#child.pid;
  }

  kill(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.status;
  }
}

/** A file server with one file, which stops answering on request. */
export class FileServer implements AsyncDisposable {
  readonly #directory: string;
  readonly #program: Program;

  private constructor(directory: string, program: Program) {
    this.#directory = directory;
    this.#program = program;
  }

  /**
   * Starts a server of zeros, or a slow one of a copy of an image: its reads fail unless
   * {@linkcode beat} is called during each. One that is slow to close reads until a
   * close fails for that reason.
   */
  static async start(
    directory: string,
    image?: string,
    slow: "to read" | "to close" = "to read",
    owner = 0,
  ): Promise<FileServer> {
    Deno.mkdirSync(directory);
    const more = image === undefined ? [] : [image];
    if (slow === "to close") more.push(slow);
    return new FileServer(
      directory,
      await Program.start(
        "env",
        `OWNER=${owner}`,
        "python3",
        SERVER,
        directory,
        ...more,
      ),
    );
  }

  /** Starts a server of zeros that no other user may use, not even root. */
  static startFor(owner: number, directory: string): Promise<FileServer> {
    return FileServer.start(directory, undefined, undefined, owner);
  }

  /** Tells a slow server that the event loop runs. */
  beat(): void {
    this.#program.kill("SIGCONT");
  }

  /** The path of its file. */
  get file(): string {
    return `${this.#directory}/disk.img`;
  }

  /** Kills the server after some seconds, even if the event loop stops. Creates a file then. */
  endAfter(seconds: number, mark: string): AsyncDisposable {
    const { pid } = this.#program;
    const child = new Deno.Command("sh", {
      args: ["-c", `sleep ${seconds}; : > '${mark}'; kill -9 ${pid}`],
    }).spawn();
    return {
      async [Symbol.asyncDispose](): Promise<void> {
        child.kill("SIGKILL");
        await child.status;
      },
    };
  }

  /** Stops answering, or answers everything with `ETIMEDOUT`. */
  async stop(how: "silent" | "ETIMEDOUT"): Promise<void> {
    this.#program.kill(how === "silent" ? "SIGUSR1" : "SIGUSR2");
    // Time for the kernel's cached attributes of the file to expire.
    await new Promise((resolve) => setTimeout(resolve, 200));
  }

  /** Ends the server. Processes that wait for an answer get an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#program[Symbol.asyncDispose]();
    run("umount", "--lazy", this.#directory);
  }
}

/** Compiles a program in C into a directory, and returns its path. */
export function compile(directory: string, source: string): string {
  const path = `${directory}/program`;
  Deno.writeTextFileSync(`${path}.c`, source);
  const { code, stderr } = run("gcc", "-w", "-O1", "-o", path, `${path}.c`);
  assertEquals(code, 0, stderr);
  return path;
}

const MOD = new URL("../../mod.ts", import.meta.url).href;

/** Time limit in seconds for a program that must not wait for others. */
const DEADLINE = 20;

/**
 * Runs a program with the library in a child process, which can be abandoned, and
 * returns its output.
 */
export function inChild(program: string): string {
  const { code, stdout, stderr } = run(
    "timeout",
    "--kill-after=1",
    `${DEADLINE}`,
    Deno.execPath(),
    "eval",
    "--quiet",
    `const { attach, detach, find, holders, list, Loop, LoopBusyError, openMemory } =
       await import("${MOD}");
     ${program}`,
  );
  assertEquals(code, 0, code >= 124 ? "it hangs" : stderr);
  return stdout.trim();
}
