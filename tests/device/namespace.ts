/** Runs scripts that use the library in other environments: other mounts, other users. */
import { type Output, run, runOk, type Scratch } from "./support.ts";

/** Directory of the project. */
export const PROJECT = new URL("../..", import.meta.url).pathname.replace(
  /\/$/,
  "",
);

/** Makes Deno and the library accessible to every user. */
export function publish(scratch: Scratch): void {
  const { path } = scratch;
  Deno.chmodSync(path, 0o755);
  Deno.copyFileSync(Deno.execPath(), `${path}/deno`);
  Deno.chmodSync(`${path}/deno`, 0o755);
  runOk("cp", "-r", `${PROJECT}/mod.ts`, `${PROJECT}/lib`, path);
  runOk("chmod", "-R", "a+rX", path);
}

/** Returns a script that calls the library and prints the result. */
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

/** Runs a script in its own mount namespace, after some shell commands. */
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

/** Command prefix for a user without any privileges. */
export const NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/** Commands that turn /dev into a tmpfs, as in many containers. */
export const TMPFS_DEV =
  "mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";

const CGROUPS = "/sys/fs/cgroup/devices";

/** Reason to skip tests of device cgroups; `undefined` if they work. */
export const noDeviceCgroup: string | undefined =
  run("test", "-w", `${CGROUPS}/devices.deny`).code === 0
    ? undefined
    : "no device cgroup is mounted here";

/** A device cgroup for one test. */
export class DeviceCgroup implements AsyncDisposable {
  readonly path = `${CGROUPS}/loopdev-test-${crypto.randomUUID()}`;

  constructor() {
    Deno.mkdirSync(this.path);
  }

  /** Returns shell commands that set these rules and move the shell into the cgroup. */
  enter(...rules: ["allow" | "deny", string][]): string {
    return [
      ...rules.map(([verb, rule]) =>
        `echo '${rule}' > ${this.path}/devices.${verb}`
      ),
      `echo $$ > ${this.path}/cgroup.procs`,
    ].join("; ");
  }

  /** Removes the cgroup, which is possible only after its last process has exited. */
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
