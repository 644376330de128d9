/** Scripts that use the library where the world is another: other mounts, other users. */
import { type Output, run, runOk, type Scratch } from "./support.ts";

/** Where the project is. */
export const PROJECT = new URL("../..", import.meta.url).pathname.replace(
  /\/$/,
  "",
);

/** A directory in which everybody finds Deno and the library. */
export function publish(scratch: Scratch): void {
  const { path } = scratch;
  Deno.chmodSync(path, 0o755);
  Deno.copyFileSync(Deno.execPath(), `${path}/deno`);
  Deno.chmodSync(`${path}/deno`, 0o755);
  runOk("cp", "-r", `${PROJECT}/mod.ts`, `${PROJECT}/lib`, path);
  runOk("chmod", "-R", "a+rX", path);
}

/** A script that calls the library and prints what comes of it. */
export function script(body: string, from = PROJECT): string {
  return `
    import * as loopdev from "${from}/mod.ts";
    const { attach, detach, find, holders, list, Loop, LoopControl } = loopdev;
    const tell = async (call) => {
      try {
        console.log("ok", JSON.stringify(await call() ?? null));
      } catch (error) {
        console.log(error.name, error.code, error.message);
      }
    };
    ${body}`;
}

/** Runs a script in a mount namespace of its own, after some shell commands. */
export function inNamespace(
  scratch: Scratch,
  setup: string,
  body: string,
  { user = "", deno = Deno.execPath(), from = PROJECT } = {},
): Output {
  const file = `${scratch.path}/world.ts`;
  Deno.writeTextFileSync(file, script(body, from));
  Deno.chmodSync(file, 0o644);
  return run(
    "unshare",
    ..."--mount --propagation private bash -c".split(" "),
    `set -e; ${setup}
     export DENO_DIR='${scratch.path}/deno_dir' HOME='${scratch.path}'
     ${user} '${deno}' run -q --no-check --no-prompt --allow-ffi --no-config '${file}'`,
  );
}

/** Somebody without any right. */
export const NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/** Makes /dev what it is in many containers. */
export const TMPFS_DEV =
  "mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";

const CGROUPS = "/sys/fs/cgroup/devices";

/** Why device cgroups cannot be tried; `undefined` when they can. */
export const noDeviceCgroup: string | undefined =
  run("test", "-w", `${CGROUPS}/devices.deny`).code === 0
    ? undefined
    : "no device cgroup is mounted here";

/** A device cgroup of a test's own. */
export class DeviceCgroup implements AsyncDisposable {
  readonly path = `${CGROUPS}/loopdev-test-${crypto.randomUUID()}`;

  constructor() {
    Deno.mkdirSync(this.path);
  }

  /** Shell commands: with these rules, and with the shell in it. */
  enter(...rules: ["allow" | "deny", string][]): string {
    return [
      ...rules.map(([verb, rule]) =>
        `echo '${rule}' > ${this.path}/devices.${verb}`
      ),
      `echo $$ > ${this.path}/cgroup.procs`,
    ].join("; ");
  }

  /** It can be removed only when the last process in it is really gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (let tries = 0;; tries++) {
      try {
        return Deno.removeSync(this.path);
      } catch (error) {
        if (tries === 50) throw error;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }
}
