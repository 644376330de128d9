/**
 * Makes every system call of every operation fail in turn, with each error that it can
 * return. Then either the result is correct, or a `LoopError` names what failed and
 * nothing is left behind.
 *
 * `LOOPDEV_FAULTS=all` tries all errors; otherwise one for each call.
 */
import { assert, assertEquals } from "@std/assert";
import { it } from "@std/testing/bdd";
import {
  attribute,
  boundDevices,
  diskSequenceOf,
  isSoon,
  numbersTo,
  run,
  runOk,
} from "../device/support.ts";
import { DATA, EVERY_OPTION } from "./child.ts";
import { countCalls, ERRORS } from "./harness.ts";
import { IMAGE_SIZE, Site } from "./site.ts";

/** Whether all errors are tried. */
export const ALL: boolean = Deno.env.get("LOOPDEV_FAULTS") === "all";

/**
 * Errors for a process that has exited, or its descriptor, which cannot be told apart.
 */
const ENDED =
  /^(openat|getdents64|readlinkat|statx|pread64):error=(ENOENT|ESRCH|ENXIO|ENODEV|EINVAL):/;

/** Returns the faults after an operation that reports success. */
function faultsOf(
  name: string,
  value: unknown,
  site: Site,
  injection: string,
): string[] {
  const [device, ...more] = site.devices();
  const faults: string[] = more.map((more) => `a second device: ${more}`);
  const expectAttached = (expected: Record<string, string>): void => {
    if (device === undefined) {
      faults.push("nothing is attached");
      return;
    }
    for (const [key, want] of Object.entries(expected)) {
      const got = attribute(device, key);
      if (got !== want) faults.push(`${key} is ${got}, not ${want}`);
    }
  };
  const expectFree = (): void => {
    if (device !== undefined) faults.push(`${device} is attached`);
    const file = Deno.readFileSync(site.files.path);
    if (!DATA.every((byte, index) => file[index] === byte)) {
      faults.push("data is missing");
    }
  };
  const expect = (want: unknown): void => {
    if (JSON.stringify(value) !== JSON.stringify(want)) {
      faults.push(`gave ${JSON.stringify(value)}, not ${JSON.stringify(want)}`);
    }
  };
  const plain = {
    "loop/offset": "0",
    "loop/sizelimit": "0",
    "loop/autoclear": "1",
    "loop/partscan": "0",
    "ro": "0",
    "size": `${IMAGE_SIZE / 512}`,
  };
  switch (name) {
    case "attach":
    case "attach a descriptor, no overlap":
      expectAttached(plain);
      expect(`/dev/${device}`);
      break;
    case "attach without autoclear":
      expectAttached({ ...plain, "loop/autoclear": "0" });
      break;
    case "attach with every option":
      expectAttached({
        ...plain,
        "loop/offset": `${EVERY_OPTION.offset}`,
        "loop/sizelimit": `${EVERY_OPTION.sizelimit}`,
        "loop/partscan": "1",
        "loop/dio": "1",
        "queue/logical_block_size": `${EVERY_OPTION.blockSize}`,
        "size": `${EVERY_OPTION.sizelimit / 512}`,
      });
      break;
    case "persist":
      expectAttached({ ...plain, "loop/autoclear": "0" });
      expect(`/dev/${device}`);
      break;
    case "changeFd":
      expectAttached({ "loop/backing_file": site.files.second, "ro": "1" });
      expect(diskSequenceOf(device!));
      break;
    case "setStatus":
      expectAttached({ "loop/offset": "4096" });
      expect(4096);
      break;
    case "attach with nodes":
      expectAttached({ "loop/offset": "0", "ro": "0" });
      expect(`${site.files.nodes}/${device}`);
      break;
    case "partitions":
      expect([`/dev/${device}p1`, `/dev/${device}p2`]);
      break;
    case "list": {
      const listed = (value as { name: string }[]).map(({ name }) => name);
      const missing = boundDevices().filter(({ name, file }) =>
        file.startsWith(site.scratch.path) && !listed.includes(name)
      );
      faults.push(...missing.map(({ name }) => `${name} is not listed`));
      break;
    }
    case "find":
      expect([`/dev/${device}`]);
      break;
    case "mount":
    case "mount on a target":
      expectAttached({ "loop/autoclear": "1", "ro": "0" });
      expect(`/dev/${device}`);
      if (site.isMounted !== (name === "mount on a target")) {
        faults.push(`it is ${site.isMounted ? "" : "not "}mounted`);
      }
      break;
    case "unmount":
    case "unmount a target":
      if (device !== undefined) faults.push(`${device} is attached`);
      if (site.isMounted) faults.push("it is mounted");
      faults.push(...faultsOfImage(site.files.mountable));
      break;
    case "holders":
      if (!ENDED.test(injection)) expect(1);
      break;
    default:
      expectFree();
  }
  return faults;
}

/** Returns the faults of the file system in an image, and of the file written to it. */
function faultsOfImage(image: string): string[] {
  const { code, stdout } = run("e2fsck", "-f", "-n", image);
  const content = new Deno.Command("debugfs", {
    args: ["-R", "cat data", image],
  }).outputSync().stdout;
  return [
    ...code === 0 ? [] : [`the file system is damaged: ${stdout}`],
    ...DATA.every((byte, index) => content[index] === byte)
      ? []
      : ["data is missing"],
  ];
}

/**
 * Returns `true` if nothing is attached. Programs that examine all devices may have one
 * open for a moment.
 */
function isFreeSoon(site: Site): boolean {
  return isSoon(() => site.devices().length === 0, 1000);
}

/**
 * Returns the faults after an operation in which a call failed, or `undefined` if the
 * operation did not make that call.
 */
async function inject(
  site: Site,
  name: string,
  injection: string,
  threads: "first" | "others" = "first",
): Promise<string[] | undefined> {
  await site.setUp(name);
  const before = site.child.descriptors().length;
  const { answer, trace } = await site.traced(
    name,
    injection,
    threads,
  );
  if (!trace.includes("(INJECTED)")) { // it took another path
    await site.tell("cleanup", name);
    return undefined;
  }
  const faults: string[] = [];
  if (answer === undefined) faults.push("it died");
  else if (
    answer.ok && threads === "others" && injection.startsWith("syncfs")
  ) {
    faults.push("it reported no write-back error");
  } else if (answer.ok) {
    faults.push(...faultsOf(name, answer.value, site, injection));
  } else if (answer.code === "" || answer.operation === "") {
    faults.push(`it threw ${answer.error}: ${answer.text}`);
  }
  if (answer !== undefined && !answer.ok && /attach|detach|^mount/.test(name)) {
    // A detach that fails early leaves a device alone that it does not hold.
    if (!/reference|persisted/.test(name) && !isFreeSoon(site)) {
      faults.push(`${site.devices()} is still attached`);
    }
    const after = site.child.descriptors().length;
    if (after > before) faults.push("a descriptor leaked");
  }
  const cleaned = await site.tell("cleanup", name);
  // ESTALE: the device was free, and another process has taken the number.
  if (!cleaned?.ok && cleaned?.code !== "ESTALE") {
    faults.push(`cleaning up: ${JSON.stringify(cleaned)}`);
  }
  if (!isFreeSoon(site)) {
    faults.push(`${site.devices()} is left attached`);
    for (const device of site.devices()) {
      runOk("losetup", "-d", `/dev/${device}`);
    }
  }
  if (site.isMounted) {
    faults.push("it is left mounted");
    runOk("umount", site.files.target);
  }
  const nodes = [...Deno.readDirSync(site.files.nodes)];
  if (nodes.length > 0) faults.push(`a node is left: ${nodes[0]!.name}`);
  const left = site.child.descriptors();
  if (left.length > 0) {
    faults.push(`descriptors left: ${left}`);
    await site.restart();
  }
  site.victim.check();
  return faults.map((fault) =>
    `${name}, ${injection}: ${fault} (${JSON.stringify(answer)})`
  );
}

const MAX_ROUNDS = 10;

/** Makes every system call of an operation on the main thread fail in turn. */
export function failEachCall(name: string): void {
  it(name, async () => {
    await using site = new Site();
    // Run once first, to load everything that is loaded on first use.
    await site.setUp(name);
    await site.tell("run", name);
    await site.tell("cleanup", name);
    await site.setUp(name);
    const baseline = await site.traced(name);
    assert(baseline.answer?.ok, JSON.stringify(baseline.answer));
    assertEquals(faultsOf(name, baseline.answer.value, site, ""), []);
    await site.tell("cleanup", name);

    const counts = countCalls(baseline.trace);
    const faults: string[] = [];
    let points = 0;
    let tried = 0;
    for (const [call, count] of counts) {
      const errors = ERRORS[call]!;
      // There are many processes on a machine, and all are examined alike.
      for (const when of numbersTo(Math.min(count, 60))) {
        points++;
        for (const error of ALL ? errors : errors.slice(0, 1)) {
          tried++;
          const injection = `${call}:error=${error}:when=${when}`;
          faults.push(...await inject(site, name, injection) ?? []);
        }
      }
    }
    console.log(`${name}: ${points} calls, ${tried} faults`);
    assert(points > 0);
    assertEquals(faults, []);
  });
}

/** Makes the system calls of an operation on other threads fail. */
export function failOnOtherThreads(name: string): void {
  it(`${name}, on other threads`, async () => {
    await using site = new Site();
    const faults: string[] = [];
    let tried = 0;
    await site.setUp(name);
    await site.tell("run", name); // there are threads then
    await site.tell("cleanup", name);
    // A thread that has just started is not traced; then no call fails.
    for (let round = 1; tried === 0 && round <= MAX_ROUNDS; round++) {
      for (const call of ["fsconfig", "syncfs", "umount2"]) {
        for (const error of ALL ? ERRORS[call]! : ERRORS[call]!.slice(0, 1)) {
          const injection = `${call}:error=${error}`;
          const found = await inject(site, name, injection, "others");
          if (found === undefined) continue;
          tried++;
          faults.push(...found);
        }
      }
    }
    console.log(`${name}, on other threads: ${tried} faults`);
    assert(tried > 0);
    assertEquals(faults, []);
  });
}
