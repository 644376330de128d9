/**
 * Controls measured programs. Each runs in its own process and is idle until asked. It
 * reads numbers of cycles from its standard input, one per line, and prints the
 * nanoseconds of each cycle.
 */
import { lines } from "../tests/device/support.ts";
import type { Contender } from "./measure.ts";

/** Running programs, to be ended if the benchmark is interrupted. */
const running = new Set<Program>();

/** A measured program. */
export class Program implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: AsyncGenerator<string>;

  constructor(command: string, ...args: string[]) {
    this.#process = new Deno.Command(command, {
      args,
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#input = this.#process.stdin.getWriter();
    this.#output = lines(this.#process.stdout);
    running.add(this);
  }

  /** Runs cycles, and returns the time of each. */
  async run(cycles: number): Promise<number[]> {
    await this.#input.write(new TextEncoder().encode(`${cycles}\n`));
    const { value, done } = await this.#output.next();
    if (done) throw new Error("a measured program ended before its time");
    return value.split(" ").map(Number);
  }

  /** Returns the program as a column of the table. */
  as(
    name: string,
    cycles: number,
    warmUp?: number,
  ): Contender {
    return {
      name,
      cycles,
      ...(warmUp !== undefined && { warmUp }),
      run: (cycles) => this.run(cycles),
    };
  }

  /** Ends it immediately. */
  kill(): void {
    try {
      this.#process.kill("SIGKILL");
    } catch {
      // it has ended
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    running.delete(this);
    await this.#input.close().catch(() => {}); // it has ended
    await this.#process.status;
  }
}

/** Ends all running programs. */
export function killPrograms(): void {
  for (const program of running) program.kill();
}

/**
 * Returns the arguments to run a program in TypeScript with the permission that the
 * library needs.
 */
export function denoArguments(name: string): string[] {
  const path = new URL(name, import.meta.url).pathname;
  return ["run", "--quiet", "--no-check", "--allow-ffi", path];
}

/** Starts the library as a measured program: see `loopdev.ts`. */
export function loopdev(...args: string[]): Program {
  return new Program(Deno.execPath(), ...denoArguments("loopdev.ts"), ...args);
}
