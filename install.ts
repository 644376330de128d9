/**
 * Installs the bundles of `dist/` as the programs `loopdev` and `losetup`, or removes them:
 * `deno task install`, `deno task uninstall`. They go to `$DENO_INSTALL_ROOT`, or `~/.deno`.
 *
 * @module
 */
import { resolve } from "@std/path/posix/resolve";

/** The programs, and the permissions that each needs. */
const PROGRAMS = {
  loopdev: ["--allow-ffi", "--allow-run"],
  losetup: ["--allow-ffi"],
};

/** By this line a program is known to be ours. */
const MARK = "# Installed by deno task install of loopdev.";

/** No configuration, lock file or network has a say in what an installed program runs. */
const FLAGS = "--quiet --no-prompt --no-config --no-lock --no-npm --no-remote";

/** Thrown for what the user can mend. */
class InstallError extends Error {}

function root(): string {
  const given = Deno.env.get("DENO_INSTALL_ROOT");
  if (given) return given;
  const home = Deno.env.get("HOME");
  if (home) return `${home}/.deno`;
  throw new InstallError("Cannot find where to install: set DENO_INSTALL_ROOT");
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function shellQuote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** The program, for sh: Deno may be on the `PATH` of nobody, as when npx has run it. */
function program(bundle: string, permissions: readonly string[]): string {
  return `#!/bin/sh
${MARK}
deno=${shellQuote(Deno.execPath())}
[ -x "$deno" ] || deno=deno
exec "$deno" run ${FLAGS} ${permissions.join(" ")} ${shellQuote(bundle)} "$@"
`;
}

/** Throws if another program has one of the names. */
function checkOurs(bin: string, what: string): void {
  for (const name of Object.keys(PROGRAMS)) {
    const text = readText(`${bin}/${name}`);
    if (text === undefined || text.includes(MARK)) continue;
    throw new InstallError(
      `Cannot ${what} ${bin}/${name}: it is another program`,
    );
  }
}

function install(bin: string, share: string): void {
  checkOurs(bin, "replace");
  Deno.mkdirSync(bin, { recursive: true });
  Deno.mkdirSync(share, { recursive: true });
  const dist = `${import.meta.dirname}/dist`;
  for (const [name, permissions] of Object.entries(PROGRAMS)) {
    for (const file of filesOf(name)) {
      Deno.copyFileSync(`${dist}/${file}`, `${share}/${file}`);
    }
    const path = `${bin}/${name}`;
    Deno.writeTextFileSync(path, program(`${share}/${name}.js`, permissions));
    Deno.chmodSync(path, 0o755);
    console.log(`Installed ${path}`);
  }
  const isOnPath = Deno.env.get("PATH")?.split(":").includes(bin);
  if (!isOnPath) {
    console.log(
      `Add their directory to your PATH: export PATH=${
        shellQuote(bin)
      }:"$PATH"`,
    );
  }
}

function uninstall(bin: string, share: string): void {
  checkOurs(bin, "remove");
  const names = Object.keys(PROGRAMS);
  const found = names.map((name) => `${bin}/${name}`).filter(removed);
  for (const path of found) console.log(`Removed ${path}`);
  if (found.length === 0) console.log(`Nothing is installed in ${bin}`);
  for (const file of names.flatMap(filesOf)) removed(`${share}/${file}`);
  removed(share);
}

function filesOf(name: string): string[] {
  return [`${name}.js`, `${name}.js.map`];
}

/** Removes a file or a directory. Returns `false` if it does not exist or is not empty. */
function removed(path: string): boolean {
  try {
    Deno.removeSync(path);
    return true;
  } catch (error) {
    const isLeft = error instanceof Deno.errors.NotFound ||
      (error instanceof Error && "code" in error && error.code === "ENOTEMPTY");
    if (isLeft) return false;
    throw error;
  }
}

if (import.meta.main) {
  const change = Deno.args[0] === "--undo" ? uninstall : install;
  try {
    const base = resolve(root());
    change(`${base}/bin`, `${base}/share/loopdev`);
  } catch (error) {
    const isExpected = error instanceof InstallError ||
      error instanceof Deno.errors.PermissionDenied ||
      error instanceof Deno.errors.NotFound;
    if (!isExpected) throw error;
    console.error(`${change.name}: ${error.message}`);
    Deno.exitCode = 1;
  }
}
