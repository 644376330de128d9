/** What the command line says of devices: whom it waits for, what is on them, what is odd about files. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { attach } from "@loopdev/loopdev";
import { describe, it } from "@std/testing/bdd";
import { main } from "../../lib/cli/main.ts";
import { command } from "../../lib/cli/show.ts";
import { printed } from "../unit/console.ts";
import { gptImage } from "../unit/partition_images.ts";
import {
  CLI,
  cli,
  isSoon,
  lackingByteArguments,
  losetupDetach,
  noDiskSequence,
  onAnyKernel,
  onDevices,
  type Output,
  OwnDevice,
  run,
  runOk,
  type Scratch,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

function linesOf(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

/** The command line in this process: quick, but not alone with its descriptors. */
async function loopdev(
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  return await printed(() => main(args));
}

/** Attaches files for the rest of a test, and gives the devices. */
async function attachHere(
  stack: AsyncDisposableStack,
  ...files: string[]
): Promise<string[]> {
  const paths: string[] = [];
  for (const file of files) {
    const { path } = stack.use(await attach(file, { overlap: "allow" }));
    paths.push(path);
  }
  return paths;
}

/** Arguments of script(1) for a command line on a terminal of its own, so many columns wide. */
function terminalArgs(columns: number, args: readonly string[]): string[] {
  const command = [
    ...[Deno.execPath(), "run", "-q", "--allow-ffi", "--allow-run", CLI],
    ...args,
  ].map((word) => `'${word}'`).join(" ");
  return [
    ...["--quiet", "--return", "--command"],
    `stty cols ${columns}; exec ${command}`,
    "/dev/null",
  ];
}

function onTerminal(columns: number, ...args: string[]): string {
  const { stdout } = run("script", ...terminalArgs(columns, args));
  return stdout.replaceAll("\r\n", "\n");
}

/** Runs a command on a terminal, and calls `act` once it has written a text that often. */
async function onTerminalUntil(
  [text, count]: [string, number],
  act: (shown: string) => Promise<void> | void,
  args: readonly string[],
): Promise<{ code: number; shown: string }> {
  const child = new Deno.Command("script", {
    args: terminalArgs(60, args),
    stdin: "null",
    stdout: "piped",
  }).spawn();
  let shown = "";
  let hasActed = false;
  for await (
    const chunk of child.stdout.pipeThrough(new TextDecoderStream())
  ) {
    shown += chunk;
    if (hasActed || shown.split(text).length <= count) continue;
    hasActed = true;
    await act(shown);
  }
  const { code } = await child.status;
  return { code, shown: shown.replaceAll("\r\n", "\n") };
}

/** `true` if the tests run a bundle. */
const isBundle = CLI.endsWith(".js");

/** Makes Deno and the program accessible to every user, and returns the paths of both. */
function publish({ path }: Scratch): { deno: string; bundle: string } {
  Deno.chmodSync(path, 0o755);
  const deno = `${path}/deno`;
  try {
    Deno.linkSync(Deno.execPath(), deno);
  } catch { // on another file system
    Deno.copyFileSync(Deno.execPath(), deno);
    Deno.chmodSync(deno, 0o755);
  }
  const bundle = `${path}/loopdev.js`;
  if (isBundle) Deno.copyFileSync(CLI, bundle);
  else runOk(Deno.execPath(), "bundle", "--quiet", `--output=${bundle}`, CLI);
  Deno.chmodSync(bundle, 0o644);
  return { deno, bundle };
}

/** Runs the command line as a user without privileges. */
function asNobody(scratch: Scratch, ...args: string[]): Output {
  const { deno, bundle } = publish(scratch);
  return run(
    "setpriv",
    ...["--reuid=65534", "--regid=65534", "--clear-groups"],
    ...["env", `DENO_DIR=${scratch.path}/cache`, deno, "run", "-q"],
    ...["--no-config", "--allow-ffi", bundle, ...args],
  );
}

/** Runs something while a process of another program has the device open. */
async function whileHeld<T>(
  device: string,
  use: (pid: number, release: () => Promise<void>) => T | Promise<T>,
): Promise<T> {
  // The shell opens the device and becomes sleep.
  const child = new Deno.Command("sh", {
    args: ["-c", `exec 3< ${device}; echo; exec sleep 60`],
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  let isHeld = true;
  const release = async () => {
    if (!isHeld) return;
    isHeld = false;
    child.kill("SIGKILL");
    await child.status;
    await reader.cancel();
  };
  const comm = `/proc/${child.pid}/comm`;
  try {
    assert(isSoon(() => Deno.readTextFileSync(comm) === "sleep\n"));
    return await use(child.pid, release);
  } finally {
    await release();
  }
}

/** Returns the reason to skip a test with a bundle: old versions of Deno make none here. */
function lackingBundles(): string | undefined {
  if (isBundle) return undefined;
  const { code } = run(Deno.execPath(), "bundle", "--quiet", CLI);
  return code === 0 ? undefined : "this Deno cannot bundle";
}

describe("loopdev detach", onDevices, () => {
  it(
    ...onAnyKernel("says whom it waits for, and what happens when it gives up"),
    withScratch(async (scratch) => {
      const device = cli("attach", scratch.image()).stdout.trim();
      await whileHeld(device, (pid) => {
        const busy = cli("detach", "--timeout", "2", device);
        assertEquals([busy.code, busy.stdout], [1, ""]);
        const [waiting, failed, ...more] = linesOf(busy.stderr);
        assertEquals(more, []);
        assertMatch(
          waiting!,
          new RegExp(
            `^loopdev: waiting up to \\d s for ${device}: open in process ${pid} \\(sleep\\); after that the kernel detaches it at the last close$`,
          ),
        );
        assertStringIncludes(failed!, `open in process ${pid} (sleep)`);
      });
    }),
  );

  it(
    ...onAnyKernel("replaces the line on a terminal, and leaves none there"),
    withScratch(async (scratch) => {
      const device = cli("attach", scratch.image()).stdout.trim();
      await whileHeld(device, async (_, release) => {
        const { shown } = await onTerminalUntil(
          ["waiting up to", 2],
          release,
          ["detach", "--timeout", "60", device],
        );
        const written = shown.replaceAll("\x1b[K", "<clear>").split("\r")
          .filter((text) => text !== "");
        assert(written.length >= 3, shown); // shown, replaced, removed
        for (const text of written.slice(0, -1)) {
          assertMatch(text, /^loopdev: waiting (up|for) .*<clear>$/);
          assert(text.replace("<clear>", "").length <= 59, text);
        }
        assertMatch(written[0]!, /…<clear>$/);
        assertEquals(written.at(-1), "<clear>");
      });
    }),
  );

  it(
    "detaches what options select, all at once, or tells what it would",
    withScratch(async (scratch) => {
      const inner = `${scratch.path}/inner`;
      Deno.mkdirSync(inner);
      const a = scratch.image(MiB, "a");
      const b = scratch.image(MiB, "inner/b");
      const c = scratch.image(MiB, "inner/c");
      const [x, y, z] = linesOf((await loopdev("attach", a, b, c)).stdout);
      Deno.removeSync(c);
      const dry = async (...args: string[]) =>
        linesOf((await loopdev("detach", "--dry-run", ...args)).stdout).sort();
      assertEquals(await dry("--under", inner), [y!, z!].sort());
      assertEquals(await dry("--under", inner, "--deleted"), [z!]);
      assertEquals(await dry("--under", scratch.path, "--file", b), [y!]);
      assertEquals(await dry("--under", `${scratch.path}/none`), []);
      assertEquals(scratch.devices().length, 3);
      const nothing = await loopdev("detach", "--under", `${inner}/none`);
      assertEquals(nothing.code, 0);
      assertMatch(
        nothing.stderr,
        /^loopdev: warning: ".*none" does not exist: /,
      );

      const deleted = await loopdev("detach", "--under", inner, "--deleted");
      assertEquals(deleted, { code: 0, stdout: "", stderr: "" });
      assertEquals((await dry("--under", scratch.path)).length, 2);
      const rest = await loopdev("detach", "--under", scratch.path, x!);
      assertEquals(rest, { code: 0, stdout: "", stderr: "" });
    }),
  );

  it(
    "leaves devices whose file is at the same path in another container",
    withScratch(async (scratch) => {
      const inner = `${scratch.path}/inner`;
      Deno.mkdirSync(inner);
      const names = ["same", "only-there", "deleted"];
      const theirs = names.map((name) =>
        runOk("losetup", "-f", "--show", scratch.image(MiB, `inner/${name}`))
      );
      const program =
        `'${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}'`;
      const result = run(
        "unshare",
        ..."--mount --propagation private bash -c".split(" "),
        `set -e
         mount -t tmpfs tmpfs '${inner}'
         truncate -s 1M '${inner}/same' '${inner}/deleted'
         ${program} attach '${inner}/same' '${inner}/deleted'
         rm '${inner}/deleted'
         ${program} detach --under '${inner}' --dry-run
         ${program} detach --under '${inner}'`,
      );
      assertEquals(result.code, 0, result.stderr);
      const [same, deleted, ...selected] = linesOf(result.stdout);
      assertEquals(selected.sort(), [same!, deleted!].sort());
      assertEquals(scratch.devices().sort(), theirs.sort());
      const warning = linesOf(result.stderr)[0]!;
      for (const path of theirs) assertStringIncludes(warning, path);
      const rest = await loopdev("detach", "--under", inner);
      assertEquals(rest, { code: 0, stdout: "", stderr: "" });
    }),
  );

  it(
    "changes nothing with --if-unused while the device is used",
    withScratch(async (scratch) => {
      const device = cli("attach", scratch.image()).stdout.trim();
      await whileHeld(device, (pid) => {
        const who = `open in process ${pid} (sleep)`;
        const used = cli("detach", "--if-unused", device);
        assertEquals([used.code, used.stdout], [1, ""]);
        assertMatch(
          used.stderr,
          /open in process \d+ \(sleep\).*; nothing was changed$/m,
        );
        assertStringIncludes(used.stderr, who);
        const dry = cli("detach", "--if-unused", "--dry-run", device);
        assertEquals([dry.code, dry.stdout], [1, ""]);
        assertStringIncludes(dry.stderr, who);
      });
      assertEquals(scratch.devices(), [device]);
      assertEquals((await loopdev("detach", device)).code, 0);
    }),
  );
});

describe("loopdev run", onDevices, () => {
  it(
    ...onAnyKernel(
      "names the users that the command leaves, and waits for them",
    ),
    withScratch(async (scratch) => {
      const command = "exec 3< $LOOPDEV; sleep 60 > /dev/null 2>&1 & echo $!";
      const { code, shown } = await onTerminalUntil(
        ["waiting up to", 1],
        (shown) => Deno.kill(Number(/^\d+/.exec(shown)![0]), "SIGKILL"),
        ["run", "--timeout", "60", scratch.image(), "--", "sh", "-c", command],
      );
      assertEquals(code, 0);
      assertMatch(
        shown,
        /^\d+\n\rloopdev: waiting up to \d+ s for \/dev\/loop\d+: open in /,
      );
      assertEquals(scratch.devices(), []);
    }),
  );
});

describe("loopdev attach", onDevices, () => {
  it(
    ...onAnyKernel("warns of other formats and other devices of the file"),
    withScratch(async (scratch) => {
      const image = (name: string, head: string): string => {
        const path = scratch.image(MiB + 100, name);
        const file = Deno.openSync(path, { write: true });
        file.writeSync(Uint8Array.from(head, (char) => char.charCodeAt(0)));
        file.close();
        return path;
      };
      const attached = async (path: string) => {
        const { code, stderr, stdout } = await loopdev("attach", "-r", path);
        assertEquals(code, 0, stderr);
        return { stderr, device: stdout.trim() };
      };
      const gzip = await attached(image("a.gz", "\x1f\x8b\x08"));
      assertMatch(
        gzip.stderr,
        /^loopdev: warning: ".*a\.gz" looks like gzip, and is attached as it is: unpack it with gzip -d first\n$/,
      );
      const qcow = await attached(image("q.img", "QFI\xfb"));
      assertStringIncludes(qcow.stderr, "qemu-img convert -O raw");

      const plain = image("plain.img", "");
      const first = await attached(plain);
      assertMatch(first.stderr, /the last 100 bytes of .* fill no block/);
      const second = await loopdev("attach", "-r", "-o", "512", plain);
      assertStringIncludes(
        second.stderr,
        `"${plain}" is also attached to ${first.device}`,
      );
      const apart = scratch.image(2 * MiB, "apart");
      const parts = [
        ["--sizelimit", `${MiB}`, apart],
        ["--offset", `${MiB}`, apart],
      ];
      for (const part of parts) {
        assertEquals((await loopdev("attach", ...part)).stderr, "");
      }
      await loopdev("detach", "--under", scratch.path);
    }),
  );
});

/** An image with a partition table, which has been damaged or not. */
function disk(scratch: Scratch, name: string, isDamaged = false): string {
  const path = scratch.image(8 * MiB, name);
  const made = run("sh", "-c", `echo 2048,2048,L | sfdisk -q -X gpt '${path}'`);
  assertEquals(made.code, 0, made.stderr);
  run("mkfs.ext4", "-q", "-L", "root", "-E", "offset=1048576", path, "1M");
  if (isDamaged) {
    const file = Deno.openSync(path, { write: true });
    // Both headers: their checksums are wrong.
    for (const at of [512, 8 * MiB - 512]) {
      file.seekSync(at + 40, Deno.SeekMode.Start);
      file.writeSync(new Uint8Array(8).fill(0xff));
    }
    file.close();
  }
  return path;
}

describe("loopdev show", onDevices, () => {
  it(
    ...unless(noDiskSequence, "refuses a device that was recycled meanwhile"),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      runOk("losetup", own.path, scratch.image(MiB, "first"));
      // It runs until it waits for the search for holders.
      const showing = printed(() => command.run([own.path, "--json"], {}));
      losetupDetach(own.path);
      runOk("losetup", own.path, scratch.image(MiB, "second"));
      const { code, stdout, stderr } = await showing;
      assertEquals([code, JSON.parse(stdout)], [1, { devices: [] }]);
      assertStringIncludes(stderr, `Cannot show "${own.path}"`);
      assertStringIncludes(stderr, "now bound to another file");
      losetupDetach(own.path);
    }),
  );

  it(
    "names five of many problems of a table",
    withScratch(async (scratch) => {
      const partitions = [
        { first: 64, last: 127 },
        ...Array.from({ length: 20 }, () => ({ first: 3000, last: 3000 })),
      ];
      const image = `${scratch.path}/disk.img`;
      Deno.writeFileSync(image, gptImage({ partitions }));
      await using stack = new AsyncDisposableStack();
      const [path] = await attachHere(stack, image);
      const { stdout } = await loopdev("show", path!, "--json");
      const { tableProblem } = JSON.parse(stdout).devices[0];
      assertMatch(tableProblem, /partition 6 .*; and 15 more$/);
    }),
  );

  it(
    "shows several devices, with the objects of loopdev partitions",
    withScratch(async (scratch) => {
      await using stack = new AsyncDisposableStack();
      const [a, b] = await attachHere(
        stack,
        disk(scratch, "a"),
        disk(scratch, "damaged", true),
      );
      const read = JSON.parse(
        (await loopdev("partitions", a!, "--json")).stdout,
      );
      assertEquals(read.partitions[0].fileSystem.label, "root");
      const shown = await loopdev("show", a!, b!, "--json");
      const { devices } = JSON.parse(shown.stdout);
      assertEquals(devices[0].partitions, read.partitions);
      assertEquals(devices[0].path, a);
      assertEquals(devices[1].partitions, []);
      assertStringIncludes(devices[1].tableProblem, "EUCLEAN");

      const text = await loopdev("show", a!, "700000", a!, b!);
      assertEquals(text.code, 1);
      assertStringIncludes(text.stderr, "Cannot show");
      const [first, second, ...more] = text.stdout.split("\n\n");
      assertEquals(more, []); // named twice, shown once
      assertMatch(first!, new RegExp(`^device +${a}\n`));
      assertMatch(first!, /^partitions +\S+p1 {2}1M {2}ext4 "root"$/m);
      assertMatch(
        second!,
        /^table problem +Cannot read the partition table of/m,
      );
    }),
  );

  it(
    ...unless(
      lackingBundles(),
      "says to run as root what needs root",
    ),
    withScratch(async (scratch) => {
      await using stack = new AsyncDisposableStack();
      const image = scratch.image();
      await attachHere(stack, image);
      const { code, stderr } = asNobody(scratch, "attach", image);
      assertEquals(code, 1);
      assertMatch(stderr, /\(EACCES\).*run it as root\n$/);
    }),
  );

  it(
    ...unless(
      lackingBundles(),
      "tells anybody what detach would select",
    ),
    withScratch(async (scratch) => {
      await using stack = new AsyncDisposableStack();
      const [device] = await attachHere(stack, scratch.image());
      const result = asNobody(
        scratch,
        ...["detach", "--under", scratch.path, "--dry-run"],
      );
      assertEquals(result, { code: 0, stdout: `${device}\n`, stderr: "" });
    }),
  );
});

describe("loopdev list and partitions", onDevices, () => {
  it(
    "fit the terminal, and print everything into a pipe",
    withScratch(async (scratch) => {
      await using stack = new AsyncDisposableStack();
      const name = `${"long-".repeat(20)}disk.img`;
      const [device] = await attachHere(stack, disk(scratch, name));
      const path = `${scratch.path}/${name}`;
      assertStringIncludes((await loopdev("list")).stdout, path);
      assertStringIncludes((await loopdev("partitions", path)).stdout, path);
      for (const columns of [80, 160]) {
        const listed = onTerminal(columns, "list", "--under", scratch.path);
        const shown = onTerminal(columns, "partitions", path);
        for (const line of [...linesOf(listed), ...linesOf(shown)]) {
          assert([...line].length <= columns, `${columns}: ${line}`);
        }
        assertMatch(listed, new RegExp(`${device} .*…\\S*disk\\.img$`, "m"));
        assertMatch(shown, /…\S*disk\.img1 /);
        assertEquals(shown.includes("UUID"), columns === 160);
      }
    }),
  );

  it(
    "escape in JSON what a terminal acts on",
    withScratch(async (scratch) => {
      await using stack = new AsyncDisposableStack();
      const path = scratch.image(MiB, "\u202e\u009b2J\x7f\u{e0041}.img");
      await attachHere(stack, path);
      const under = ["--under", scratch.path];
      const { stdout } = await loopdev("list", "--json", ...under);
      assertMatch(stdout, /^[\n -~]*$/);
      assertEquals(JSON.parse(stdout).devices[0].backingFile, path);
    }),
  );

  it(
    "show references, and select by them",
    withScratch(async (scratch) => {
      const reference = scratch.path.slice(-40);
      const a = scratch.image(MiB, "a");
      const b = scratch.image(MiB, "b");
      const device = (await loopdev("attach", "--loop-ref", reference, a))
        .stdout.trim();
      await loopdev("attach", b);
      const under = ["--under", scratch.path];
      const listed = await loopdev("ls", "-n", "-O", "NAME,REF", ...under);
      assertStringIncludes(listed.stdout, `${device} ${reference}`);
      assertEquals(linesOf(listed.stdout).length, 2);
      const json = await loopdev("list", "--json", "--loop-ref", reference);
      const [{ path, reference: found }] = JSON.parse(json.stdout).devices;
      assertEquals([path, found], [device, reference]);
      await loopdev("detach", ...under);
    }),
  );

  it(
    ...unless(
      lackingByteArguments(),
      "read a file whose name is not UTF-8",
    ),
    withScratch((scratch) => {
      const path = disk(scratch, "plain");
      const command =
        `cd '${scratch.path}'; mv '${path}' $'a\\xff.img'; '${Deno.execPath()}' run -q --allow-ffi ${CLI} partitions $'a\\xff.img'; '${Deno.execPath()}' run -q --allow-ffi ${CLI} partitions $'none\\xff'`;
      const { stdout, stderr } = run("bash", "-c", command);
      assertMatch(stdout, /^a\ufffd\.img1 +1048576 +1048576 /m);
      assertMatch(stderr, /^loopdev: Cannot open .*ENOENT/m);
    }),
  );
});
