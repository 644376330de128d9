import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { attach, Loop, LOOP_CLR_FD, openFile } from "@loopdev/loopdev";
import { describe, it } from "@std/testing/bdd";
import { ioctlValue } from "../../lib/sys/libc.ts";
import { main } from "../../lib/cli/main.ts";
import { printed } from "../unit/console.ts";
import { gptImage } from "../unit/partition_images.ts";
import {
  attribute,
  CLI,
  cli,
  isSoon,
  lackingByteArguments,
  lines,
  onAnyKernel,
  onDevices,
  OwnDevice,
  run,
  runOk,
  sameOnAnyKernel,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;
const noByteArguments = lackingByteArguments();

describe("loopdev", onDevices, () => {
  it(
    "attaches a file, lists and finds it, and detaches",
    withScratch((scratch) => {
      const path = scratch.image(2 * MiB, "a b.img");
      const attached = cli("attach", path, "--offset", "1M", "-b", "4K");
      assertEquals(attached.code, 0, attached.stderr);
      assertEquals(attached.stderr, "");
      const device = attached.stdout.trim();
      const name = device.replace("/dev/", "");
      assertEquals(scratch.devices(), [device]);
      assertEquals(attribute(name, "loop/autoclear"), "0");
      assertEquals(attribute(name, "loop/offset"), "1048576");
      assertEquals(attribute(name, "queue/logical_block_size"), "4096");

      const table = cli("list").stdout.split("\n");
      assertMatch(table[0]!, /^NAME +SIZE +OFFSET .*BACK-FILE$/);
      const row = table.find((line) => line.startsWith(`${device} `))!;
      assertMatch(row, new RegExp(`^${device} +1048576 +1048576 .* ${path}$`));
      const short = cli("list", "-n", "-O", "name,BACK-FILE").stdout;
      assertStringIncludes(short, `${device} `);
      assertMatch(short, new RegExp(`^${device} +${path}$`, "m"));

      const { devices } = JSON.parse(cli("list", "--json").stdout);
      const found = devices.find((
        { path }: { path: string },
      ) => path === device);
      assertEquals(found.backingFile, path);
      assertEquals(found.offset, MiB);
      assertEquals(found.autoclear, false);

      assertEquals(cli("find", path).stdout, `${device}\n`);
      const detached = cli("detach", device);
      assertEquals(detached, { code: 0, stdout: "", stderr: "" });
      assertEquals(cli("find", path), { code: 1, stdout: "", stderr: "" });
    }),
  );

  it(
    "accepts a device as path, name, number and node",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      runOk("cp", "-a", own.path, `${scratch.path}/node`);
      for (
        const device of [
          own.path,
          own.name,
          `${own.minor}`,
          `${scratch.path}/node`,
        ]
      ) {
        const attached = cli("attach", "--device", device, path);
        assertEquals(attached.stdout, `${own.path}\n`, attached.stderr);
        assertEquals(cli("detach", device).code, 0);
      }
    }),
  );

  it(
    "sets properties that losetup reports",
    withScratch((scratch) => {
      const path = scratch.image(8 * MiB);
      const { stdout } = cli(
        ..."attach -rP --direct-io -b 4096 --sizelimit 4MiB".split(" "),
        "--loop-ref=a name",
        "--json",
        path,
      );
      const [device] = JSON.parse(stdout).devices;
      assertEquals(device.readOnly, true);
      assertEquals(device.sizelimit, 4 * MiB);
      const { loopdevices } = JSON.parse(
        runOk("losetup", "--json", "--list", "--output-all", device.path),
      );
      const { ro, partscan, dio, autoclear, sizelimit } = loopdevices[0];
      assertEquals([ro, partscan, dio, autoclear, sizelimit], [
        true,
        true,
        true,
        false,
        4 * MiB,
      ]);
      assertEquals(cli("detach", device.path).code, 0);
    }),
  );

  it(
    "prints the path of a node that it has created",
    withScratch((scratch) => {
      const path = scratch.image();
      for (const options of [[], ["--json"]]) {
        const { code, stdout, stderr } = cli(
          "attach",
          "--nodes",
          scratch.path,
          ...options,
          path,
        );
        assertEquals(code, 0, stderr);
        const printed = options.length === 0
          ? stdout.trim()
          : JSON.parse(stdout).devices[0].path;
        const [device] = scratch.devices();
        assertEquals(printed, device!.replace("/dev", scratch.path));
        assert(Deno.statSync(printed).isBlockDevice);
        assertEquals(cli("detach", printed).code, 0);
        Deno.removeSync(printed);
      }
    }),
  );

  it(
    "tries all files and devices, and names those that failed",
    withScratch((scratch) => {
      const a = scratch.image(MiB, "a");
      const b = scratch.image(MiB, "b");
      const none = `${scratch.path}/none`;
      const attached = cli("attach", a, none, b);
      assertEquals(attached.code, 1);
      assertEquals(
        attached.stderr,
        `loopdev: Cannot open "${none}": no such file or directory (ENOENT)\n`,
      );
      const devices = attached.stdout.trim().split("\n");
      assertEquals(devices.length, 2);
      const detached = cli("detach", devices[0]!, "/dev/null", devices[1]!);
      assertEquals(detached.code, 1);
      assertMatch(
        detached.stderr,
        /^loopdev: Cannot use "\/dev\/null" as a loop device: .*\n$/,
      );
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    ...onAnyKernel("warns of a tail of the file that the device does not show"),
    withScratch((scratch) => {
      const path = scratch.image(1000);
      const warning = (...options: string[]) => {
        const { code, stdout, stderr } = cli("attach", path, ...options);
        assertEquals(code, 0, stderr);
        assertEquals(cli("detach", stdout.trim()).code, 0);
        return stderr;
      };
      assertMatch(warning(), /the last 488 bytes .* fill no block of 512/);
      assertEquals(warning("--sizelimit", "512"), "");

      const ran = cli("run", path, "--", "true");
      assertMatch(ran.stderr, /the last 488 bytes .* fill no block/);
      const device = cli("attach", path, "--sizelimit", "512").stdout.trim();
      assertEquals(cli("set", device, "--no-autoclear").stderr, "");
      assertMatch(
        cli("set", device, "--sizelimit", "0").stderr,
        /the last 488 bytes .* fill no block/,
      );
      Deno.truncateSync(path, 1025);
      assertMatch(
        cli("resize", device).stderr,
        /the last 1 bytes .* fill no block/,
      );
      assertEquals(cli("detach", device).code, 0);
    }),
  );

  it(
    ...onAnyKernel("warns of a tail smaller than a block of the device"),
    withScratch((scratch) => {
      const path = scratch.image(4096 + 512);
      assertEquals(cli("attach", path).stderr, "");
      const [device] = scratch.devices();
      // With sectors of 512 bytes, all of it is readable; with larger ones it is not.
      assertEquals(run("cat", device!).stdout.length, 4608);
      const warning =
        /^loopdev: warning: the last 512 bytes of ".*" fill no block of 4096 .*\n$/;
      assertMatch(cli("set", device!, "-b", "4096").stderr, warning);
      assertEquals(run("cat", device!).stdout.length, 4096);
      assertEquals(cli("detach", device!).code, 0);

      const attached = cli("attach", "-b", "4096", path);
      assertMatch(attached.stderr, warning);
      assertEquals(cli("detach", attached.stdout.trim()).code, 0);
    }),
  );

  it(
    ...onAnyKernel("detaches a device only once if it is named twice"),
    withScratch((scratch) => {
      const path = scratch.image();
      const device = cli("attach", path, "--loop-ref", path.slice(-40)).stdout
        .trim();
      const detached = cli(
        "detach",
        device,
        device,
        "--file",
        path,
        "--loop-ref",
        path.slice(-40),
      );
      assertEquals(detached, { code: 0, stdout: "", stderr: "" });
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    ...unless(
      sameOnAnyKernel ?? noByteArguments,
      "attaches the file that was named, whatever bytes its name has",
    ),
    withScratch((scratch) => {
      for (const name of ["\\xff", "a\\nb", "-x", "\\xef\\xbf\\xbd", "%41?#"]) {
        const script = `
          cd '${scratch.path}'
          name=$'${name}'
          truncate -s 4096 -- "$name"
          run() { '${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}' "$@"; }
          dev=$(run attach -- "$name") && run find -- "$name" &&
          run find -- "$PWD/$name" && stat -c %i -- "$name" &&
          losetup -nO BACK-INO $dev && run detach --file "$name"`;
        const { code, stdout, stderr } = run("bash", "-c", script);
        assertEquals(code, 0, stderr);
        const [a, b, inode, theirs] = stdout.split("\n");
        assertMatch(a!, /^\/dev\/loop\d+$/);
        assertEquals(a, b);
        assertEquals(inode, theirs!.trim());
      }
      // Two names that read the same are ambiguous.
      const { code, stderr } = run(
        "bash",
        "-c",
        `cd '${scratch.path}'; '${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}' attach $'\\xff' $'\\xfe'`,
      );
      assertEquals(code, 2);
      assertMatch(stderr, /is not UTF-8/);
    }),
  );

  it(
    ...unless(
      noByteArguments,
      "touches no other device for a name that is not UTF-8",
    ),
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      runOk("losetup", own.path, path);
      const directory = `${scratch.path}/d\ufffd`;
      Deno.mkdirSync(directory);
      runOk("cp", "-a", own.path, `${directory}/node`);
      const bash = (command: string) =>
        run(
          "bash",
          "-c",
          `cd '${scratch.path}'; run() { '${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}' "$@"; }; ${command}`,
        );
      const { code, stderr } = bash("run detach $'d\\xff/node'");
      assertEquals(code, 2);
      assertMatch(stderr, /is not UTF-8/);
      const reference = bash(
        `run attach --loop-ref=$'a\\xff' '${path}'`,
      );
      assertEquals(reference.code, 2);
      assertEquals(scratch.devices(), [own.path]);
      // The replacement character itself is a valid name.
      assertEquals(bash("run detach $'d\\xef\\xbf\\xbd/node'").code, 0);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    ...onAnyKernel("works if /dev has no nodes"),
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      const loopdev =
        `'${Deno.execPath()}' run -q --no-prompt --allow-ffi '${CLI}'`;
      const script = `set -e; loopdev() { ${loopdev} "$@"; }
        mount -t tmpfs dev /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
        mount -t tmpfs run /run
        for option in "" --json; do
          loopdev attach $option --device ${own.minor} --loop-ref ${own.name} '${path}' > /run/out
          node=$(grep -o '/run/loopdev-[0-9a-f-]*/${own.name}' /run/out)
          test -b "$node"
          test -n "$option" || { loopdev detach "$node"; test ! -e "$node"; }
        done
        loopdev set ${own.path} --sizelimit 4096
        loopdev show ${own.minor} --json | jq -r '.devices[0] | .reference, .sizelimit'
        loopdev mknod ${own.name} /dev; test -b ${own.path}; rm ${own.path}
        loopdev detach --loop-ref ${own.name}; ls /run`;
      assertEquals(run("unshare", "--mount", "bash", "-c", script), {
        code: 0,
        stdout: `${own.name}\n4096\n/dev/${own.name}\nout\n`,
        stderr: "",
      });
    }),
  );

  it(
    ...onAnyKernel("changes a device without /sys"),
    withScratch((scratch) => {
      using own = new OwnDevice();
      const path = scratch.image(1000);
      const script = `set -e; mount -t tmpfs sys /sys
        loopdev() { '${Deno.execPath()}' run -q --no-prompt --allow-ffi '${CLI}' "$@"; }
        loopdev attach --device ${own.minor} --sizelimit 512 '${path}'
        loopdev set ${own.minor} --sizelimit 0
        loopdev resize ${own.minor}
        loopdev detach ${own.minor}`;
      assertEquals(run("unshare", "--mount", "bash", "-c", script), {
        code: 0,
        stdout: `${own.path}\n512\n`,
        stderr: "",
      });
    }),
  );

  it(
    ...unless(
      sameOnAnyKernel ?? noByteArguments,
      "runs no command with names that it cannot pass on",
    ),
    withScratch((scratch) => {
      const path = scratch.image();
      const { code, stderr } = run(
        "bash",
        "-c",
        `'${Deno.execPath()}' run -q --no-prompt --allow-ffi --allow-run '${CLI}' run '${path}' -- touch $'${scratch.path}/\\xff'`,
      );
      assertEquals(code, 2);
      assertMatch(stderr, /is not UTF-8/);
      assertEquals([...Deno.readDirSync(scratch.path)].length, 1);
    }),
  );

  it(
    ...onAnyKernel("works in pipelines, and fails if stdout cannot be written"),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      await using a = await attach(path, { minor: own.minor });
      const loopdev =
        `'${Deno.execPath()}' run -q --no-prompt --allow-ffi '${CLI}'`;
      const shell = (script: string) =>
        run(
          "bash",
          "-c",
          `set -o pipefail; loopdev() { ${loopdev} "$@"; }; ${script}`,
        );
      const filter = `.devices[] | select(.path == "${a.path}") | .backingFile`;
      const scripts: [script: string, stdout: string][] = [
        [`loopdev list --json | jq -r '${filter}'`, `${path}\n`],
        [`loopdev list | head -n 1 | cut -c1-4`, "NAME\n"],
        [
          `for i in {1..50}; do echo list; done | loopdev find '${path}'`,
          `${a.path}\n`,
        ],
        [`loopdev find '${path}' <&-`, `${a.path}\n`],
        [`loopdev find '${path}' >&-`, ""],
        [`dev=$(loopdev find '${path}') && test -b "$dev"`, ""],
      ];
      for (const [script, stdout] of scripts) {
        const result = shell(script);
        assertEquals(result, { code: 0, stdout, stderr: "" }, script);
      }
      for (const args of ["list", "--help", "--version", "doctor"]) {
        const { code, stderr } = shell(`loopdev ${args} > /dev/full`);
        assertEquals(code, 1);
        assertEquals(
          stderr,
          "loopdev: Cannot write to standard output: No space left on device (os error 28)\n",
        );
      }
    }),
  );

  it(
    "leaves the device to the kernel if a waiting detach is interrupted",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const device = cli("attach", path).stdout.trim();
      using holder = openFile(device, { readOnly: true });
      const child = new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "-q",
          "--allow-ffi",
          CLI,
          "detach",
          device,
          "--timeout",
          "30s",
        ],
        stdout: "null",
        stderr: "null",
      }).spawn();
      const name = device.replace("/dev/", "");
      while (attribute(name, "loop/autoclear") !== "1") {
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      child.kill("SIGINT");
      assertEquals((await child.status).signal, "SIGINT");
      assertEquals(scratch.devices(), [device]);
      holder.close();
    }),
  );

  it(
    "detaches a device that it could not print",
    withScratch((scratch) => {
      const path = scratch.image();
      for (const option of ["", "--json"]) {
        const { code, stderr } = run(
          "bash",
          "-c",
          `'${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}' attach ${option} '${path}' > /dev/full`,
        );
        assertEquals(code, 1, stderr);
        assertEquals(scratch.devices(), []);
      }
    }),
  );

  it(
    "shows the partitions at a new offset",
    withScratch((scratch) => {
      const path = scratch.image(8 * MiB);
      const table = (sectors: number, file: string): string =>
        `echo 'start=2048, size=${sectors}, type=83' | sfdisk -q --label dos ${file}`;
      runOk(
        "bash",
        "-c",
        `set -e; cd ${scratch.path}; ${table(1000, path)}
         truncate -s 4M inner; ${table(3000, "inner")}
         dd if=inner of=${path} bs=1M seek=1 conv=notrunc status=none`,
      );
      const device = cli("attach", "-P", path).stdout.trim();
      const name = device.replace("/dev/", "");
      const size = () => attribute(name, `${name}p1/size`);
      assertEquals(size(), "1000");
      const done = cli("set", device, "--offset", "1M");
      assertEquals(done, { code: 0, stdout: "", stderr: "" });
      assertEquals(size(), "3000");
      cli("detach", device);
    }),
  );

  it(
    "goes on if a message cannot be written",
    withScratch((scratch) => {
      const loopdev =
        `'${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}'`;
      const path = scratch.image(MiB + 100); // its tail fills no block
      const attached = run(
        "bash",
        "-c",
        `${loopdev} attach ${path} 2> /dev/full`,
      );
      const device = attached.stdout.trim();
      assertEquals([attached.code, [device]], [1, scratch.devices()]);
      using own = new OwnDevice(); // nothing is attached to it
      const { code } = run(
        "bash",
        "-c",
        `${loopdev} detach ${own.path} ${device} 2> /dev/full`,
      );
      assertEquals(code, 1);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "detaches named devices even if nothing can be selected",
    withScratch((scratch) => {
      const device = cli("attach", scratch.image()).stdout.trim();
      const gone = `${scratch.path}/gone`;
      const { code, stderr } = cli("detach", device, "--file", gone);
      assertEquals(code, 1);
      assertStringIncludes(stderr, "no such file or directory (ENOENT)");
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    ...unless(noByteArguments, "prints names that are not UTF-8 byte by byte"),
    withScratch((scratch) => {
      const loopdev =
        `'${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}'`;
      using own = new OwnDevice();
      const printed = runOk(
        "bash",
        "-c",
        `cd '${scratch.path}'; mkdir $'d\\xff'; : > $'f\\xff'
         node=$(${loopdev} mknod ${own.path} $'d\\xff'); test "$node" = $'d\\xff/${own.name}' && rm "$node" && echo found
         ${loopdev} attach $'f\\xff' 2>&1 || true`,
      );
      assertMatch(printed, /^found\n.*Cannot attach "f\ufffd": /);
    }),
  );

  it(
    "runs a command with the devices, and detaches them however the command ends",
    withScratch((scratch) => {
      const a = scratch.image(MiB, "a");
      const b = scratch.image(MiB, "b");
      const loopdev = (...args: string[]) =>
        run(
          Deno.execPath(),
          ..."run -q --no-check --no-prompt --allow-ffi --allow-run".split(" "),
          CLI,
          ...args,
        );
      const { code, stdout, stderr } = loopdev(
        ...["run", "-o", "4096", a, b, "--", "sh", "-c"],
        'echo "$LOOPDEV"; for d in $LOOPDEV; do echo hello > $d; done; exit 7',
      );
      assertEquals(code, 7, stderr);
      assertMatch(stdout, /^\/dev\/loop\d+ \/dev\/loop\d+\n$/);
      for (const path of [a, b]) {
        assertEquals(
          new TextDecoder().decode(
            Deno.readFileSync(path).subarray(4096, 4101),
          ),
          "hello",
        );
      }
      assertEquals(scratch.devices(), []);

      assertEquals(
        loopdev("run", a, "--", "kill", "-9", "0x").code !== 0,
        true,
      );
      for (const name of ["/nowhere/command", "loopdev-has-no-such-command"]) {
        assertEquals(loopdev("run", a, "--", name), {
          code: 127,
          stdout: "",
          stderr: `loopdev: Cannot run "${name}": no such command\n`,
        });
      }
      for (const name of [scratch.path, a]) {
        const { code, stderr } = loopdev("run", b, "--", name);
        assertEquals(code, 126);
        assertMatch(stderr, /^loopdev: Cannot run .*: permission denied\n$/);
      }
      const killed = loopdev("run", a, "--", "sh", "-c", "kill -KILL $$");
      assertEquals([killed.code, killed.stderr], [128 + 9, ""]);
      for (const words of [["run", a], ["run", a, "--"]]) {
        const shell = run(
          ..."env SHELL=/bin/echo".split(" ") as [string, string],
          Deno.execPath(),
          ..."run -q --no-check --no-prompt --allow-ffi --allow-run".split(" "),
          CLI,
          ...words,
        );
        assertEquals(shell, { code: 0, stdout: "\n", stderr: "" });
      }
      assertEquals(loopdev("run", "--", "true").code, 2);
      const none = `${scratch.path}/none`;
      assertEquals(loopdev("run", a, none, "--", "true").code, 1);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "forwards signals to the command, and then detaches",
    withScratch(async (scratch) => {
      const path = scratch.image();
      for (const signal of ["INT", "TERM", "HUP"]) {
        const process = new Deno.Command(Deno.execPath(), {
          args: [
            ..."run -q --no-check --allow-ffi --allow-run".split(" "),
            CLI,
            "run",
            path,
            "--",
            "bash",
            "-c",
            `trap 'echo got; exit 3' ${signal}; echo ready; while :; do sleep 0.01; done`,
          ],
          stdin: "null",
          stdout: "piped",
        }).spawn();
        const output = process.stdout.pipeThrough(new TextDecoderStream())
          .getReader();
        assertEquals((await output.read()).value, "ready\n");
        process.kill(`SIG${signal}` as Deno.Signal);
        assertEquals((await output.read()).value, "got\n");
        assertEquals((await process.status).code, 3);
        await output.cancel();
        assertEquals(scratch.devices(), []);
      }
    }),
  );

  it(
    ...onAnyKernel(
      "forwards a signal once, even if the terminal sent it to the whole group",
    ),
    withScratch(async (scratch) => {
      const path = scratch.image();
      const command =
        `trap 'echo INT' INT; trap 'echo end; exit 3' TERM; echo $PPID; while :; do sleep 0.01; done`;
      for (const redirection of ["", "< /dev/null"]) {
        const program = [
          "run",
          "-q",
          "--no-check",
          "--allow-ffi",
          "--allow-run",
        ];
        const script = [Deno.execPath(), ...program, CLI, "run", path]
          .map((word) => `'${word}'`).join(" ");
        await using child = new Deno.Command("script", {
          args: [
            "-qec",
            `exec ${script} -- bash -c "$COMMAND" ${redirection}`,
            "/dev/null",
          ],
          env: { COMMAND: command, SHELL: "/bin/sh" },
          stdin: "piped",
          stdout: "piped",
        }).spawn();
        const printed = lines(child.stdout);
        const next = async () =>
          ((await printed.next()).value as string).replace("^C", "").trim();
        const loopdev = Number(await next());
        const terminal = child.stdin.getWriter();
        const signals: (() => unknown)[] = [
          () => Deno.kill(loopdev, "SIGINT"),
          () => terminal.write(new Uint8Array([3])), // Ctrl-C
          () => terminal.write(new Uint8Array([3])),
          () => run("kill", "-INT", "--", `-${loopdev}`), // the process group of loopdev
          () => Deno.kill(loopdev, "SIGINT"),
        ];
        for (const send of signals) {
          await send();
          assertEquals(await next(), "INT");
          // Time for a second signal to arrive.
          await new Promise((resolve) => setTimeout(resolve, 200));
        }
        Deno.kill(loopdev, "SIGTERM");
        assertEquals(await next(), "end");
        assertEquals((await child.status).code, 3);
        await terminal.close();
        assertEquals(scratch.devices(), []);
      }
    }),
  );

  it(
    "sets no range that begins to show bytes of another device, unless both only read",
    withScratch((scratch) => {
      const path = scratch.image(4 * MiB);
      for (const [option, code] of [["--overlap", 1], ["-r", 0]] as const) {
        const attached = (...args: string[]) =>
          cli("attach", option, ...args, path).stdout.trim();
        const a = attached("--sizelimit", "1M");
        const b = attached("-o", "1M", "--sizelimit", "1M");
        const both = attached("--sizelimit", "3M");
        const set = (...args: string[]) => cli("set", ...args);
        const result = set(a, "--sizelimit", "1537K");
        assertEquals(result.code, code, result.stderr);
        if (code === 1) {
          assertStringIncludes(result.stderr, `${b} already shows some of its`);
          assertEquals(attribute(a.slice(5), "loop/sizelimit"), `${MiB}`);
        }
        assertEquals(set(b, "--offset", "1025K").code, 0);
        assertEquals(set(both, "--sizelimit", "2M").code, 0);
        assertEquals(set(a, "--sizelimit", "512K").code, 0);
        for (const device of [a, b, both]) cli("detach", device);
      }
    }),
  );

  it(
    "attaches nothing that it cannot print, also not into a closed pipe",
    withScratch((scratch) => {
      const path = scratch.image();
      for (const option of ["", "--json"]) {
        const loopdev =
          `'${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}'`;
        const { stderr } = run(
          "bash",
          "-c",
          `(sleep 0.2; ${loopdev} attach ${option} '${path}'; echo "status $?" >&2) | true`,
        );
        assertEquals(
          stderr,
          "loopdev: Cannot write to standard output: Broken pipe (os error 32)\nstatus 1\n",
        );
        assertEquals(scratch.devices(), []);
      }
    }),
  );

  it(
    ...onAnyKernel("ends with its command at Ctrl-C, without an error"),
    withScratch(async (scratch) => {
      const path = scratch.image();
      const loopdev = [
        Deno.execPath(),
        "run",
        "-q",
        "--no-check",
        "--allow-ffi",
      ];
      const script = [...loopdev, "--allow-run", CLI, "run", path]
        .map((word) => `'${word}'`).join(" ");
      for (const _ of Array(5).keys()) {
        await using child = new Deno.Command("script", {
          args: [
            "-qec",
            `exec ${script} -- sh -c 'echo ready; exec sleep 100'`,
            "/dev/null",
          ],
          env: { SHELL: "/bin/sh" },
          stdin: "piped",
          stdout: "piped",
        }).spawn();
        const printed = lines(child.stdout);
        assertEquals(((await printed.next()).value as string).trim(), "ready");
        // The witness is started after the command.
        await new Promise((resolve) => setTimeout(resolve, 100));
        const terminal = child.stdin.getWriter();
        await terminal.write(new Uint8Array([3]));
        const rest = [];
        for await (const line of printed) rest.push(line);
        assertEquals(rest.join("\n").replace("^C", "").trim(), "");
        assertEquals((await child.status).code, 130);
        await terminal.close();
        assertEquals(scratch.devices(), []);
      }
    }),
  );

  it(
    "has the partitions ready with --partscan, or prints why not",
    withScratch((scratch) => {
      const path = `${scratch.path}/disk.img`;
      const image = gptImage({ partitions: [{ first: 100, last: 299 }] });
      Deno.writeFileSync(path, image);
      const attached = cli("attach", "-P", path);
      assertEquals([attached.code, attached.stderr], [0, ""]);
      const device = attached.stdout.trim();
      assert(Deno.statSync(`${device}p1`).isBlockDevice);
      assertEquals(cli("detach", device).code, 0);

      const ran = run(
        Deno.execPath(),
        ..."run -q --no-check --allow-ffi --allow-run".split(" "),
        CLI,
        ..."run -P".split(" "),
        path,
        ..."-- sh -c".split(" "),
        'test -b "${LOOPDEV}p1"',
      );
      assertEquals([ran.code, ran.stderr], [0, ""]);

      const later = cli("attach", path).stdout.trim();
      assertEquals(cli("set", later, "-P"), {
        code: 0,
        stdout: "",
        stderr: "",
      });
      // Closing a device that was open for writing, udev has the table read again.
      assert(isSoon(() => run("test", "-b", `${later}p1`).code === 0));
      assertEquals(cli("detach", later).code, 0);

      // Damages both headers.
      for (const at of [512, image.length - 512]) {
        image.fill(0xee, at + 24, at + 32);
      }
      Deno.writeFileSync(path, image);
      const damaged = cli("attach", "-P", path);
      assertEquals([damaged.code, damaged.stdout], [1, ""]);
      assertMatch(damaged.stderr, /^loopdev: .*\(EUCLEAN\).*\n$/);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "shows everything about a device",
    withScratch((scratch) => {
      const path = scratch.image();
      const device = cli("attach", "-rP", "--loop-ref", "a b", path).stdout
        .trim();
      const { code, stdout } = cli("show", device);
      assertEquals(code, 0);
      assertMatch(stdout, /^device +\/dev\/loop/);
      assertMatch(stdout, new RegExp(`\nbacking file +${path}\n`));
      assertMatch(stdout, /\nreference +a b\n/);
      assertMatch(stdout, /\nholders +none\n/);
      const json = JSON.parse(cli("show", device, "--json").stdout).devices[0];
      assertEquals(json.backingFile, path);
      assertEquals(json.reference, "a b");
      assertEquals(json.holders, []);
      assertEquals(json.partitions, []);
      cli("detach", device);
      const missing = cli("show", "1048575");
      assertMatch(missing.stderr, /no such file or directory \(ENOENT\)/);
      using own = new OwnDevice();
      const free = cli("show", own.path);
      assertEquals(free.code, 1);
      assertMatch(free.stderr, /no file is attached/);
    }),
  );

  it(
    "changes, swaps and resizes a live device",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const { path: device, name } = own;
      const path = scratch.image(8 * MiB);
      assertEquals(cli("attach", "--device", device, path).code, 0);
      const set = (...args: string[]) =>
        assertEquals(cli("set", device, ...args), {
          code: 0,
          stdout: "",
          stderr: "",
        });
      set("--offset", "1M", "--sizelimit=2M", "-b", "4096", "--direct-io");
      set("--partscan");
      assertEquals(attribute(name, "loop/offset"), `${MiB}`);
      assertEquals(attribute(name, "loop/sizelimit"), `${2 * MiB}`);
      assertEquals(attribute(name, "queue/logical_block_size"), "4096");
      assertEquals(attribute(name, "loop/dio"), "1");
      assertEquals(attribute(name, "loop/partscan"), "1");
      set("--no-direct-io", "--offset", "0", "--sizelimit", "0");
      assertEquals(attribute(name, "loop/dio"), "0");
      assertEquals(attribute(name, "loop/offset"), "0");
      Deno.truncateSync(path, 16 * MiB);
      assertEquals(cli("resize", device).stdout, `${16 * MiB}\n`);
      assertEquals(cli("set", device).code, 2);
      assertEquals(cli("set", device, "--sizelimit=-1").code, 2);
      const other = scratch.image(16 * MiB, "other.img");
      for (const file of [other, path]) {
        assertMatch(cli("swap", device, file).stderr, /must be read-only/);
      }
      cli("detach", device);
      cli("attach", "-r", "--device", device, path);
      Deno.writeFileSync(other, new Uint8Array(16 * MiB).fill(7));
      const firstByte = () => {
        const bytes = new Uint8Array(1);
        held.seekSync(0, Deno.SeekMode.Start);
        held.readSync(bytes);
        return bytes[0];
      };
      using held = Deno.openSync(device);
      assertEquals(firstByte(), 0);
      assertEquals(cli("swap", device, other).code, 0);
      assertEquals(attribute(name, "loop/backing_file"), other);
      assertEquals(firstByte(), 7);
      held.close();
      assertEquals(cli("detach", device).code, 0);
      assertEquals(cli("resize", device).code, 1);
    }),
  );

  it(
    "detaches by file and by reference",
    withScratch((scratch) => {
      const path = scratch.image();
      const reference = `test ${crypto.randomUUID()}`;
      cli("attach", path);
      cli("attach", "--overlap", "-o", "4096", path);
      assertEquals(scratch.devices().length, 2);
      assertEquals(cli("detach", "--file", path, "--timeout=5s").code, 0);
      assertEquals(scratch.devices(), []);
      cli("attach", "--loop-ref", reference, path);
      const other = cli("attach", "--overlap", path).stdout.trim();
      {
        // A device of another program that is being detached and cannot be opened.
        using own = new OwnDevice();
        using file = openFile(scratch.image(MiB, "third.img"));
        using loop = new Loop(own.minor);
        loop.setFd(file.fd);
        ioctlValue(loop.fd, LOOP_CLR_FD, 0n);
        assertEquals(cli("detach", "--loop-ref", reference).code, 0);
      }
      assertEquals(scratch.devices(), [other]);
      const none = cli("detach", "--loop-ref", reference);
      assertEquals(none.code, 1);
      assertMatch(none.stderr, /there is no device with reference/);
      assertEquals(cli("detach", other, "--lazy").code, 0);
      assertEquals(cli("detach", "--file", path).code, 1);
      assertEquals(cli("attach", "-L", path, path).code, 1);
      assertEquals(scratch.devices().length, 1);
      assertEquals(cli("detach", "--file", path).code, 0);
    }),
  );

  it(
    "adds and removes devices, and creates nodes",
    withScratch((scratch) => {
      let free;
      {
        using own = new OwnDevice();
        free = own.minor;
      }
      assertEquals(cli("add", `${free}`).stdout, `/dev/loop${free}\n`);
      const again = cli("add", `${free}`);
      assertEquals([again.code, again.stdout], [1, ""]);
      assertMatch(again.stderr, /\(EEXIST\)/);
      const made = {
        code: 0,
        stdout: `${scratch.path}/loop${free}\n`,
        stderr: "",
      };
      assertEquals(cli("mknod", `${free}`, scratch.path), made);
      assertEquals(cli("mknod", `${free}`, scratch.path), made); // it is there
      Deno.chmodSync(made.stdout.trim(), 0o666);
      const { code, stdout, stderr } = cli("mknod", `${free}`, scratch.path);
      assertEquals([code, stdout], [0, made.stdout]);
      assertStringIncludes(stderr, "other users may open it");
      Deno.chmodSync(made.stdout.trim(), 0o600);
      Deno.mkdirSync(`${scratch.path}/other/loop${free}`, { recursive: true });
      assertMatch(
        cli("mknod", `${free}`, `${scratch.path}/other`).stderr,
        /\(EEXIST\): a directory has that name/,
      );
      const node = Deno.statSync(`${scratch.path}/loop${free}`);
      assert(node.isBlockDevice);
      assertEquals(node.mode! & 0o7777, 0o600);
      assertEquals(cli("remove", `${free}`).stdout, `/dev/loop${free}\n`);
      assertEquals(cli("remove", `${free}`).code, 1);
    }),
  );

  it(
    ...onAnyKernel("exits with status 2 for wrong usage, and changes nothing"),
    withScratch(async (scratch) => {
      const path = scratch.image();
      const wrong = [
        ["bogus"],
        ["attach"],
        ["attach", "--bogus", path],
        ["attach", "-o", "-1", path],
        ["attach", "-o", "1.5", path],
        ["attach", "-r5", path],
        ["attach", "--read-only=0", path],
        ["detach", "loop99999999999"],
        ["detach", "0", "--timeout", "5x"],
        ["detach", "0", "--jsno"],
        ["set", "0"],
        ["set", "0", "--offset", "8E"],
        ["list", "--json", "-O", "NAME"],
        ["swap", "0"],
        ["resize"],
        ["show"],
        ["attach", "-b", "1000", path],
        ["attach", "-b", "0", path],
        ["attach", "--loop-ref", "x".repeat(64), path],
        ["attach", "--device", "loop4294967296", path],
        ["attach", "--device", "7", path, path],
        ["attach", "--overlap", "--nooverlap", path],
        ["run", "-L", "--overlap", path, "--", "true"],
        ["detach"],
        ["list", "x"],
        ["list", "-O", "bogus"],
        ["find"],
        ["find", "a", "b"],
        ["add", "x"],
        ["add", "1048576"],
        ["remove", "4294967296"],
        ["mknod", "0"],
      ];
      for (const args of wrong) {
        const { code, stdout, stderr } = await printed(() => main(args));
        assertEquals([code, stdout], [2, ""], args.join(" "));
        assertMatch(stderr, /^loopdev: .* \(see loopdev help.*\)\n$/);
        assertEquals(scratch.devices(), []);
      }
    }),
  );

  it(...onAnyKernel("prints help and version without permissions"), () => {
    const bare = (...args: string[]) =>
      run(Deno.execPath(), "run", "-q", "--no-prompt", CLI, ...args);
    const commands =
      "attach run detach list find show set swap resize partitions add remove mknod"
        .split(" ");
    const help = bare("--help");
    assertEquals([help.code, help.stderr], [0, ""]);
    for (const command of commands) {
      assertMatch(help.stdout, new RegExp(`\n  ${command}[, ]`));
      const { code, stdout, stderr } = bare(command, "--help");
      assertEquals([code, stderr], [0, ""]);
      assertStringIncludes(stdout, "Examples:\n");
      assertStringIncludes(stdout, `Usage: loopdev ${command}`);
      assertStringIncludes(stdout, "--allow-ffi");
    }
    for (const args of [["--version"], ["-V"], ["list", "--version"]]) {
      assertMatch(bare(...args).stdout, /^loopdev \d+\.\d+\.\d+\n$/);
    }
    const denied = bare("list");
    assertEquals(denied.code, 1);
    assertMatch(denied.stderr, /^loopdev: Requires ffi access .*\n$/);
  });
});
