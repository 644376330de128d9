/**
 * Tests the locations of the C library on other systems. Their layouts are built from
 * this machine's files in a mount namespace, under grants for a single path.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { PROJECT } from "./namespace.ts";
import {
  onAnyKernel,
  onDevices,
  run,
  runOk,
  type Scratch,
  withScratch,
} from "./support.ts";

const ARCH = Deno.build.arch;

/** Libraries that Deno needs, and the loader that it names. */
const LIBRARIES = onDevices.ignore ? [] : [
  ...runOk("ldd", Deno.execPath()).matchAll(/=> (\/\S+)/g),
].map(([, path]) => path!);
const LOADER = ARCH === "aarch64"
  ? "/lib/ld-linux-aarch64.so.1"
  : "/lib64/ld-linux-x86-64.so.2";

/** Locations of the C library and the loader on a system, and its symbolic links. */
interface Layout {
  readonly libraries: string;
  readonly loader?: string;
  readonly links?: Record<string, string>;
}

const HASH = "/nix/store/0c4l4ijyyfqhmlm1c3kqbnhzxa8q9kkl-glibc-2.40-66/lib";

const LAYOUTS = {
  "Debian, /usr merged": {
    libraries: `/usr/lib/${ARCH}-linux-gnu`,
    links: { "/lib": "usr/lib", "/lib64": "usr/lib64" },
  },
  "Debian, /usr not merged": { libraries: `/lib/${ARCH}-linux-gnu` },
  Arch: {
    libraries: "/usr/lib",
    links: { "/lib": "usr/lib", "/lib64": "usr/lib" },
  },
  Fedora: {
    libraries: "/usr/lib64",
    links: { "/lib": "usr/lib", "/lib64": "usr/lib64" },
  },
  "Alpine, glibc beside musl": { libraries: "/usr/local/lib/glibc" },
  Homebrew: { libraries: "/home/linuxbrew/.linuxbrew/opt/glibc/lib" },
  NixOS: { libraries: HASH, loader: `${HASH}/ld-linux.so.2` },
} satisfies Record<string, Layout>;

/**
 * Builds the root directory of a layout. Returns the commands that mount the rest of
 * it.
 */
function build(scratch: Scratch, layout: Layout): string {
  const root = `${scratch.path}/root`;
  for (const name of ["proc", "sys", "dev", "project", "cache", "usr/lib64"]) {
    Deno.mkdirSync(`${root}/${name}`, { recursive: true });
  }
  Deno.mkdirSync(`${root}/usr/lib`);
  for (const [link, target] of Object.entries(layout.links ?? {})) {
    Deno.symlinkSync(target, `${root}${link}`);
  }
  Deno.mkdirSync(`${root}${layout.libraries}`, { recursive: true });
  for (const path of LIBRARIES) {
    Deno.copyFileSync(path, `${root}${layout.libraries}/${baseName(path)}`);
  }
  const loader = `${root}${layout.loader ?? LOADER}`;
  Deno.mkdirSync(loader.slice(0, loader.lastIndexOf("/")), { recursive: true });
  Deno.copyFileSync(LOADER, loader);
  Deno.createSync(`${root}/deno`).close();
  let deno = Deno.execPath();
  if (layout.loader !== undefined) {
    deno = `${scratch.path}/deno`;
    Deno.copyFileSync(Deno.execPath(), deno);
    nameLoader(deno, layout.loader);
  }
  const mounts = { [deno]: "deno", [PROJECT]: "project" };
  return [
    ...Object.entries({
      ...mounts,
      "/proc": "proc",
      "/sys": "sys",
      "/dev": "dev",
    })
      .map(([from, to]) => `mount --rbind '${from}' '${root}/${to}'`),
    `export DENO_DIR=/cache HOME=/cache LD_LIBRARY_PATH=${layout.libraries}`,
  ].join("\n");
}

function baseName(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** Makes an executable name another loader, appended at its end. */
function nameLoader(executable: string, loader: string): void {
  const PT_INTERP = 3;
  const name = new TextEncoder().encode(`${loader}\0`);
  using file = Deno.openSync(executable, { read: true, write: true });
  const end = file.seekSync(0, Deno.SeekMode.End);
  file.writeSync(name);
  const bytes = new Uint8Array(4096);
  file.seekSync(0, Deno.SeekMode.Start);
  file.readSync(bytes);
  const view = new DataView(bytes.buffer);
  let at = Number(view.getBigUint64(32, true));
  while (view.getUint32(at, true) !== PT_INTERP) at += 56;
  view.setBigUint64(at + 8, BigInt(end), true);
  view.setBigUint64(at + 32, BigInt(name.length), true);
  view.setBigUint64(at + 40, BigInt(name.length), true);
  file.seekSync(0, Deno.SeekMode.Start);
  file.writeSync(bytes);
}

/**
 * Lists devices with each of the grants on a system with that layout. Returns the
 * output of each run.
 */
function listWith(
  scratch: Scratch,
  layout: Layout,
  grants: string[],
): string[] {
  const setup = build(scratch, layout);
  Deno.writeTextFileSync(
    `${scratch.path}/root/list.ts`,
    `import { list } from "/project/mod.ts";
     try {
       list();
       console.log("ok");
     } catch (error) {
       console.log(error.name, error.message);
     }`,
  );
  const { stdout, stderr } = run(
    ..."unshare --mount --propagation private bash -c".split(" ") as [string],
    `set -e
     ${setup}
     for grant in ${grants.map((grant) => `'${grant}'`).join(" ")}; do
       chroot '${scratch.path}/root' /deno run -q --no-check --no-prompt --no-config $grant /list.ts
     done`,
  );
  assertEquals(stderr, "");
  return stdout.trimEnd().split("\n");
}

describe("the C library", onDevices, () => {
  const opened: [keyof typeof LAYOUTS, string[]][] = [
    ["Debian, /usr merged", ["/lib", "/usr/lib", "/"]],
    ["Debian, /usr not merged", ["/lib", "/"]],
    ["Arch", ["/usr/lib", "/lib", "/usr", "/usr/lib/libc.so.6"]],
    ["Fedora", ["/usr", "/lib64", "/usr/lib64/libc.so.6"]],
    ["Alpine, glibc beside musl", ["/usr/local/lib/glibc/libc.so.6", "/usr"]],
    ["Homebrew", ["/home/linuxbrew"]],
    ["NixOS", [
      "/nix/store --allow-read=/deno",
      `${HASH}/libc.so.6 --allow-read`,
    ]],
  ];
  for (const [name, grants] of opened) {
    it(
      ...onAnyKernel(`is the first granted one that opens: ${name}`),
      withScratch((scratch) => {
        const flags = grants.map((grant) => `--allow-ffi=${grant}`);
        assertEquals(
          listWith(scratch, LAYOUTS[name], ["--allow-ffi", ...flags]),
          ["ok", ...grants.map(() => "ok")],
        );
      }),
    );
  }

  const named: [keyof typeof LAYOUTS, string, string][] = [
    ["Fedora", "/lib", "/lib64/libc.so.6"],
    ["Debian, /usr not merged", "/usr/lib", `/lib/${ARCH}-linux-gnu/libc.so.6`],
    ["NixOS", "/lib", `${HASH}/libc.so.6`],
  ];
  for (const [name, wrong, right] of named) {
    it(
      ...onAnyKernel(`is named if another path was granted: ${name}`),
      withScratch((scratch) => {
        const [here, blind] = listWith(scratch, LAYOUTS[name], [
          `--allow-ffi=${wrong} --allow-read`,
          `--allow-ffi=${wrong}`,
        ]);
        assertEquals(
          here!.replace(/ \(.*/, ""),
          `NotCapable Requires ffi access to "${right}", run again with --allow-ffi=${right}, or with the --allow-ffi flag`,
        );
        // Paths may not be read.
        assertMatch(
          blind!,
          /^NotCapable Requires ffi access to the C library, .*"ldd \/deno" prints/,
        );
      }),
    );
  }
});
