/**
 * Runs the library as a measured program:
 *
 *     loopdev.ts attach FILE [OPTIONS]     attaches and detaches
 *     loopdev.ts many FILE MINOR...        attaches to all of these, then detaches
 *     loopdev.ts all FILE...               attaches all of these with attachAll(), then detaches
 *     loopdev.ts mount FILE                mounts FILE, which is attached, then unmounts
 *     loopdev.ts getInfo|getStatus FILE    while FILE is attached
 *     loopdev.ts list
 *     loopdev.ts find FILE
 */
import {
  attach,
  attachAll,
  type Attachment,
  find,
  list,
  LoopError,
} from "@loopdev/loopdev";

const NANOSECONDS = 1e6;
/**
 * Number of calls in a cycle, for calls of about a microsecond: the clock is not finer.
 */
const CALLS = 100;

type Cycle = () => number | Promise<number>;

async function cycleOf([what, ...args]: string[]): Promise<Cycle> {
  const file = args[0]!;
  switch (what) {
    case "attach": {
      const options = JSON.parse(args[1] ?? "{}");
      return async () => {
        const start = performance.now();
        const device = await attach(file, options);
        await device.detach();
        return performance.now() - start;
      };
    }
    case "many": {
      const minors = args.slice(1).map(Number);
      return async () => {
        const start = performance.now();
        const devices: Attachment[] = [];
        for (const minor of minors) {
          devices.push(await attach(file, { minor, overlap: "allow" }));
        }
        for (const device of devices) await device.detach();
        return (performance.now() - start) / minors.length;
      };
    }
    case "all":
      return async () => {
        const start = performance.now();
        {
          await using _all = await attachAll(args);
        }
        return (performance.now() - start) / args.length;
      };
    case "mount": {
      const device = await attach(file);
      return async () => {
        const start = performance.now();
        {
          await using _mount = await device.mount();
        }
        return performance.now() - start;
      };
    }
    case "getInfo":
    case "getStatus": {
      const { loop } = await attach(file);
      return () => {
        const start = performance.now();
        for (let call = 0; call < CALLS; call++) loop[what]();
        return (performance.now() - start) / CALLS;
      };
    }
    case "list":
      return () => timed(list);
    case "find":
      return () => timed(() => find(file));
    default:
      throw new Error(`no such program: ${what}`);
  }
}

function timed(call: () => unknown): number {
  const start = performance.now();
  call();
  return performance.now() - start;
}

async function answer(cycle: Cycle): Promise<number> {
  try {
    return Math.round(await cycle() * NANOSECONDS);
  } catch (error) {
    if (error instanceof LoopError) return -error.errno;
    throw error;
  }
}

if (import.meta.main) {
  const cycle = await cycleOf(Deno.args);
  const request = new Uint8Array(64);
  for (let size; (size = await Deno.stdin.read(request)) !== null;) {
    const count = parseInt(
      new TextDecoder().decode(request.subarray(0, size)),
    );
    const answers: number[] = [];
    for (let done = 0; done < count; done++) answers.push(await answer(cycle));
    console.log(answers.join(" "));
  }
  Deno.exit(); // the kernel detaches the devices
}
