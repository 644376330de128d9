/**
 * Creates many devices for the benchmark, with high numbers that are not found when
 * looking for a free one.
 */
import { LoopControl, LoopError } from "@loopdev/loopdev";

/** Removing a device takes about 44 ms, but the kernel removes many at a time. */
const PROCESSES = 4;
/** Time limit in seconds, because udev may have a device open for a moment. */
const PATIENCE = 30;

/** Devices that are removed at the end. */
export class OwnDevices implements AsyncDisposable {
  readonly minors: number[] = [];
  #next = 100_000 + 10_000 * Math.floor(Math.random() * 80);

  /** Adds the given number of devices. */
  add(count: number): void {
    using control = new LoopControl();
    for (const goal = this.minors.length + count; this.minors.length < goal;) {
      const minor = this.#next++;
      try {
        this.minors.push(control.add(minor));
      } catch (error) {
        // The device belongs to another program and must not be touched.
        const exists = error instanceof LoopError && error.code === "EEXIST";
        if (!exists) throw error;
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await removeDevices(this.minors.splice(0));
  }
}

/** Removes devices in parallel. */
export async function removeDevices(minors: number[]): Promise<void> {
  const end = performance.now() + PATIENCE * 1000;
  for (let left = minors; left.length > 0; left = left.filter(exists)) {
    if (performance.now() > end) {
      throw new Error(`cannot remove loop${left.join(", loop")}`);
    }
    const share = Math.ceil(left.length / PROCESSES);
    const removals: Promise<unknown>[] = [];
    for (let at = 0; at < left.length; at += share) {
      removals.push(removeThere(left.slice(at, at + share)));
    }
    await Promise.all(removals);
  }
}

async function removeThere(minors: number[]): Promise<void> {
  const program = new URL("remove.ts", import.meta.url).pathname;
  await new Deno.Command(Deno.execPath(), {
    args: [
      ..."run --quiet --no-check --allow-ffi".split(" "),
      program,
      ...minors.map(String),
    ],
  }).output();
}

function exists(minor: number): boolean {
  try {
    Deno.statSync(`/sys/block/loop${minor}`);
    return true;
  } catch {
    return false;
  }
}

/** Returns the numbers of all loop devices. */
export function allMinors(): number[] {
  return [...Deno.readDirSync("/sys/block")]
    .map(({ name }) => Number(/^loop(\d+)$/.exec(name)?.[1]))
    .filter((minor) => !Number.isNaN(minor));
}
