/** Tests that the event loop runs during long walks through `/proc`. */
import { FileDescriptor } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { Lookup } from "../../lib/kernel/lookup.ts";
import { allProcesses, hasWaiting, Pace } from "../../lib/kernel/processes.ts";
import { openDirectoryAt } from "../../lib/sys/sysfs.ts";
import { onDevices } from "./support.ts";

/** Counts how often the event loop may run, which is wanted at every opportunity. */
class Counted extends Pace {
  count = 0;

  override get isTired(): boolean {
    return true;
  }

  override breathe(): Promise<void> {
    this.count++;
    return Promise.resolve();
  }
}

function threadsOf(pid: number): number {
  return [...Deno.readDirSync(`/proc/${pid}/task`)].length;
}

describe("the event loop", onDevices, () => {
  it("can run between the threads whose state is read", async () => {
    using process = new FileDescriptor(openDirectoryAt("/proc/self"));
    const pace = new Counted();
    const threads = threadsOf(Deno.pid);
    assert(threads > 2);
    await hasWaiting(process.fd, pace);
    assert(pace.count > 2, `${pace.count} of ${threads}`);
  });

  it("can run between the threads whose descriptors are compared", async () => {
    const pace = new Counted();
    let before: number | undefined;
    for await (const process of allProcesses(pace)) {
      if (typeof process === "number") continue;
      // This process comes first. Its threads are examined before the next one.
      if (before === undefined) {
        assertEquals(process.pid, Deno.pid);
        before = pace.count;
      } else if (process.pid !== Deno.pid) break;
    }
    assert(pace.count - before! > 2, `${pace.count} of ${threadsOf(Deno.pid)}`);
  });

  it("can run between the mounts that are read before paths are looked up", async () => {
    const pace = new Counted();
    await new Lookup().prepare(pace);
    const mounts = Deno.readTextFileSync("/proc/self/mountinfo").split("\n");
    assert(pace.count > 2, `${pace.count} of ${mounts.length}`);
  });
});
