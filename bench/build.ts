/**
 * Builds the programs in other languages. A program that cannot be built is reported
 * and left out.
 */

const HERE = new URL(".", import.meta.url).pathname;
/** Kept between runs, because building the one in Rust takes minutes. */
const BUILD = `${HERE}build`;

function run(
  command: string,
  args: string[],
  options: Deno.CommandOptions = {},
): void {
  let output;
  try {
    output = new Deno.Command(command, { args, ...options }).outputSync();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new Error(`${command} is not installed`);
  }
  if (output.success) return;
  const lines = new TextDecoder().decode(output.stderr).trim().split("\n");
  const why = lines.find((line) => /error|cannot find/.test(line)) ?? lines[0];
  throw new Error(`${command}: ${why}`);
}

/** Compiles a program in C and returns its path. */
export function buildC(name: string): string {
  Deno.mkdirSync(BUILD, { recursive: true });
  const program = `${BUILD}/${name}`;
  run("cc", ["-O2", "-Wall", "-o", program, `${HERE}${name}.c`]);
  return program;
}

/** Directory in which Debian's packages put Go sources. */
const GO = "/usr/share/gocode";
const RUST = "/usr/share/cargo/registry";

/** Builds the program that uses the Go library. */
export function buildGo(): string {
  const program = `${BUILD}/go`;
  if (!exists(`${GO}/src/gopkg.in/freddierice/go-losetup.v1`)) {
    throw new Error("golang-gopkg-freddierice-go-losetup.v1-dev is missing");
  }
  run("go", ["build", "-o", program, `${HERE}peers/attach.go`], {
    env: { GO111MODULE: "off", GOPATH: GO, GOCACHE: `${BUILD}/go-cache` },
  });
  return program;
}

/** Builds the program that uses the Rust library. */
export function buildRust(): string {
  if (
    ![...Deno.readDirSync(RUST)].some(({ name }) => /^loopdev-0/.test(name))
  ) {
    throw new Error("librust-loopdev-dev is missing");
  }
  // A copy, because cargo writes its lock file next to the sources.
  const sources = `${BUILD}/rust`;
  Deno.mkdirSync(`${sources}/src`, { recursive: true });
  for (const file of ["Cargo.toml", "src/main.rs"]) {
    const text = Deno.readTextFileSync(`${HERE}peers/rust/${file}`);
    // A newer file makes cargo build again.
    if (text !== readText(`${sources}/${file}`)) {
      Deno.writeTextFileSync(`${sources}/${file}`, text);
    }
  }
  run("cargo", [
    "build",
    "--release",
    "--offline",
    ...["--config", 'source.crates-io.replace-with="debian"'],
    ...["--config", `source.debian.directory="${RUST}"`],
  ], { cwd: sources });
  return `${sources}/target/release/attach`;
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}
