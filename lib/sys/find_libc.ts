/**
 * Finds the C library. A grant for its path alone is enough, but Deno does not report
 * which path was granted, so each usual place is queried.
 */
import { ELF64, ELF64_PHDR, PT_INTERP } from "./layouts.ts";

/**
 * Returns the absolute paths at which C libraries are found. A bare name would not load
 * under a grant for a path.
 */
export function libraryPaths(
  musl: boolean,
  arch: string = Deno.build.arch,
): string[] {
  if (musl) {
    return [`/lib/ld-musl-${arch}.so.1`, `/lib/libc.musl-${arch}.so.1`];
  }
  return [
    `/lib/${arch}-linux-gnu`,
    `/usr/lib/${arch}-linux-gnu`,
    "/lib64",
    "/usr/lib64",
    "/usr/lib",
    "/lib",
    // Locations of a second C library besides the system's: Alpine, Homebrew, snap.
    "/usr/local/lib/glibc",
    "/usr/glibc-compat/lib",
    "/home/linuxbrew/.linuxbrew/opt/glibc/lib",
    "/home/linuxbrew/.linuxbrew/lib",
    ...[26, 24, 22, 20].map((base) =>
      `/snap/core${base}/current/lib/${arch}-linux-gnu`
    ),
  ].map((directory) => `${directory}/libc.so.6`);
}

function isGranted(name: "ffi" | "read", path?: string): boolean {
  const { state } = Deno.permissions.querySync({ name, ...(path && { path }) });
  return state === "granted";
}

const isMusl = (): boolean => (Deno.build as { env?: string }).env === "musl";

/** Yields the libraries that may be opened without a prompt, the likeliest first. */
export function* grantedLibraries(): Generator<string> {
  if (isGranted("ffi")) {
    yield isMusl() ? `libc.musl-${Deno.build.arch}.so.1` : "libc.so.6";
    return;
  }
  const granted = (path: string) => isGranted("ffi", path);
  yield* libraryPaths(isMusl()).filter(granted);
  yield* ownLibraries().filter(granted);
}

/**
 * Returns the C libraries of this very program, as far as its executable is readable:
 * they are next to the loader that it names, or next to the target of that name.
 * (`/proc/self/maps` lists them, but Deno allows reading it only under `--allow-all`.)
 */
function ownLibraries(): string[] {
  try {
    const loader = loaderOf(Deno.execPath());
    if (loader === undefined) return [];
    const beside = [`${directoryOf(loader)}/libc.so.6`];
    if (isGranted("read", loader)) {
      beside.push(`${directoryOf(Deno.realPathSync(loader))}/libc.so.6`);
    }
    return beside;
  } catch {
    return []; // another kind of executable, or no longer there
  }
}

function directoryOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/"));
}

/** Returns the loader that an executable requests from the kernel. */
function loaderOf(executable: string): string | undefined {
  if (!isGranted("read", executable)) return undefined;
  using file = Deno.openSync(executable);
  const read = (position: number, length: number) => {
    const bytes = new Uint8Array(length);
    file.seekSync(position, Deno.SeekMode.Start);
    return bytes.subarray(0, file.readSync(bytes) ?? 0);
  };
  const header = new DataView(read(0, ELF64.size).buffer);
  const start = Number(header.getBigUint64(ELF64.e_phoff, true));
  const count = header.getUint16(ELF64.e_phnum, true);
  const table = new DataView(read(start, count * ELF64_PHDR.size).buffer);
  for (let at = 0; at < table.byteLength; at += ELF64_PHDR.size) {
    if (table.getUint32(at + ELF64_PHDR.p_type, true) !== PT_INTERP) continue;
    const [offset, size] = [ELF64_PHDR.p_offset, ELF64_PHDR.p_filesz]
      .map((field) => Number(table.getBigUint64(at + field, true)));
    return new TextDecoder().decode(read(offset!, size! - 1)); // without the terminating NUL
  }
  return undefined;
}

/** Returns the absolute path to grant on this machine, if it can be determined. */
function pathToGrant(): string | undefined {
  return [...ownLibraries(), ...libraryPaths(isMusl())].find((path) => {
    if (!isGranted("read", path)) return false;
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  });
}

/**
 * Creates the error for a missing grant, or for one under which no C library can be
 * opened.
 */
export function notGranted(failures: readonly Error[]): Error {
  const path = pathToGrant();
  const flag = path === undefined
    ? `the --allow-ffi flag, or with --allow-ffi=PATH: the path of the C library that "ldd ${executable()}" prints`
    : `--allow-ffi=${path}, or with the --allow-ffi flag`;
  const message = `Requires ffi access to ${
    path === undefined ? "the C library" : JSON.stringify(path)
  }, run again with ${flag}`;
  if (failures.length === 0) return new Deno.errors.NotCapable(message);
  // An existing library that does not load is more informative than missing ones.
  const [cause] = failures.filter(({ message }) =>
    !/No such file/.test(message)
  );
  const tried = `none of the granted libraries can be opened`;
  return new Deno.errors.NotCapable(
    `${message} (${tried}${cause === undefined ? "" : `: ${cause.message}`})`,
    { cause: cause ?? failures[0] },
  );
}

function executable(): string {
  try {
    return Deno.execPath();
  } catch {
    return "deno";
  }
}
