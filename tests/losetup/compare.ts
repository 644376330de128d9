/**
 * Runs each command line with losetup and with ours, from the same state, and prints
 * the results as JSON. Must be run in its own mount namespace.
 */
import { assertNotEquals } from "@std/assert";
import { type Case, CASES } from "./cases.ts";
import { fromBytes, toBytes } from "../../lib/losetup/byte_string.ts";
import { lines, type Output } from "../device/support.ts";
import { World } from "./world.ts";

/** Output and effects of a command line. */
export interface Outcome extends Output {
  state: unknown;
}

/** Result of a case. */
export interface Result {
  name: string;
  differs: string | undefined;
  theirs: Outcome;
  ours: Outcome;
}

/** A process that runs our command lines in sequence. */
class Server implements Disposable {
  readonly #process: Deno.ChildProcess;
  readonly #requests: WritableStreamDefaultWriter<Uint8Array>;
  readonly #answers: AsyncGenerator<string>;

  constructor(directory: string, ...user: string[]) {
    const file = new URL("./server.ts", import.meta.url).pathname;
    this.#process = new Deno.Command(Deno.execPath(), {
      args: [
        ..."run --quiet --no-check --no-prompt --allow-ffi".split(" "),
        file,
        ...user,
      ],
      cwd: directory,
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#requests = this.#process.stdin.getWriter();
    this.#answers = lines(this.#process.stdout);
  }

  async run(args: string[], env: Record<string, string>): Promise<Output> {
    const request = `${JSON.stringify({ args, env })}\n`;
    await this.#requests.write(new TextEncoder().encode(request));
    return JSON.parse((await this.#answers.next()).value);
  }

  [Symbol.dispose](): void {
    this.#process.kill();
  }
}

const NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/**
 * Runs losetup. A shell reads the arguments from a file, because they may not be UTF-8.
 */
function runLosetup(
  directory: string,
  args: string[],
  { user, hangs }: Case,
  env: Record<string, string>,
): Output {
  const file = `${directory}.args`;
  Deno.writeFileSync(file, toBytes(args.map((arg) => `${arg}\0`).join("")));
  const command = `${hangs ? "timeout 0.5" : ""} ${
    user === "nobody" ? NOBODY : ""
  } losetup`;
  const output = new Deno.Command("bash", {
    args: [
      "-c",
      `mapfile -d '' args < '${file}'; exec env -u LANG ${
        Object.entries(env).map(([name, value]) => `${name}='${value}'`)
          .join(" ")
      } ${command} "\${args[@]}"`,
    ],
    cwd: directory,
    env: { LC_ALL: "C" },
  }).outputSync();
  Deno.removeSync(file);
  return {
    code: output.code,
    stdout: fromBytes(output.stdout),
    stderr: fromBytes(output.stderr),
  };
}

/** Throws if changes to `/sys` would be visible outside. */
function checkNamespace(): void {
  const namespaceOf = (pid: number) => Deno.readLinkSync(`/proc/${pid}/ns/mnt`);
  assertNotEquals(namespaceOf(Deno.pid), namespaceOf(Deno.ppid));
}

/** Runs a command line with both. */
async function compare(
  test: Case,
  world: World,
  server: Server,
): Promise<Result> {
  const args = test.args.map((arg) => world.expand(arg));
  const env = { LC_ALL: "C.UTF-8", ...test.env };
  const outcome = async (
    run: () => Output | Promise<Output>,
  ): Promise<Outcome> => {
    test.given?.(world);
    if (test.detachesAll) world.checkHidden();
    const { code, stdout, stderr } = await run();
    const state = world.state();
    await world.reset();
    return {
      code,
      stdout: world.normalize(stdout),
      stderr: world.normalize(stderr),
      state,
    };
  };
  return {
    name: test.name,
    differs: test.differs,
    theirs: await outcome(() => runLosetup(world.path, args, test, env)),
    ours: await outcome(() => server.run(args, env)),
  };
}

/**
 * Maximum number of attempts: programs that list all devices open ours for a moment,
 * which delays a detach and causes differences that do not last.
 */
const MAX_TRIES = 10;

function isExpected({ theirs, ours, differs }: Result): boolean {
  return (JSON.stringify(theirs) !== JSON.stringify(ours)) ===
    (differs !== undefined);
}

if (import.meta.main) {
  checkNamespace();
  await using world = new World();
  using root = new Server(world.path);
  using nobody = new Server(world.path, "nobody");
  const results: Result[] = [];
  const [wanted = ""] = Deno.args;
  for (const test of CASES.filter(({ name }) => name.includes(wanted))) {
    const server = test.user === "nobody" ? nobody : root;
    let result = await compare(test, world, server);
    for (let tries = 1; tries < MAX_TRIES && !isExpected(result); tries++) {
      result = await compare(test, world, server);
    }
    results.push(result);
  }
  console.log(JSON.stringify(results));
}
