import { Loop, LoopControl } from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { partitionsOf } from "../../lib/kernel/loop_sysfs.ts";
import { CASES } from "../losetup/cases.ts";
import type { Result } from "../losetup/compare.ts";
import { ours } from "../losetup/ours.ts";
import {
  attribute,
  diskSequenceOf,
  dropsPartitions,
  holdExclusively,
  lackingByteArguments,
  onAnyKernel,
  onDevices,
  OwnDevice,
  reasonToSkip,
  run,
  runOk,
  type Scratch,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;
const PROJECT = new URL("../..", import.meta.url).pathname;

async function oursOk(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await ours(args);
  assertEquals(code, 0, stderr);
  return stdout.trim();
}

/** Returns the first cells of the table of deviations. */
function documentedDeviations(): string[] {
  const source = Deno.readTextFileSync(`${PROJECT}losetup.ts`);
  return [...source.matchAll(/^ \* \| (.*?) \| .* \| .* \|$/gm)]
    .map(([, cell]) => cell!)
    .filter((cell) => cell !== "losetup");
}

/** Deviations that do not show in output; other tests here cover some of them. */
const NOT_COMPARED = [
  "`-d` discards the data written last",
  "`-f FILE` fails if a device has no node, and waits if it is held exclusively",
  "partitions of the previous file stay",
  "`-b SIZE DEV` of a mounted device depends on the kernel",
  "an invalid `-b` attaches the file for a moment",
  "a narrow terminal wraps cells",
  "messages are translated",
  "`write error` of long output has no reason",
  "a locale must be installed",
  "`LOOPDEV_DEBUG` traces",
];

/** `true` if losetup has the version to compare with. */
const isOracle = reasonToSkip === undefined &&
  /util-linux 2\.38\./.test(run("losetup", "--version").stdout);

describe(...onAnyKernel("losetup", onDevices), () => {
  it(
    "prints and does the same as util-linux, except for the deviations",
    { ignore: !isOracle },
    () => {
      const results: Result[] = JSON.parse(
        runOk(
          "unshare",
          ..."--mount --propagation private".split(" "),
          Deno.execPath(),
          ..."run --quiet --no-check --allow-all".split(" "),
          `${PROJECT}tests/losetup/compare.ts`,
        ),
      );
      assert(CASES.length >= 250);
      assertEquals(results.map(({ name }) => name), CASES.map((it) => it.name));
      const text = ({ stdout, stderr }: Result["ours"]) => [stdout, stderr];
      let codes = 0;
      let texts = 0;
      for (const { name, differs, theirs, ours } of results) {
        if (differs === undefined) {
          assertEquals(ours, theirs, name);
          continue;
        }
        const isSame = (part: (outcome: Result["ours"]) => unknown) =>
          JSON.stringify(part(ours)) === JSON.stringify(part(theirs));
        assert(!isSame((outcome) => outcome), `does not differ: ${name}`);
        if (ours.code !== theirs.code) codes++;
        if (!isSame(text)) texts++;
      }
      assert(codes <= 8, `${codes} differ in the exit status`);
      assert(texts <= 20, `${texts} differ in text`);
    },
  );

  it("has each deviation in its documentation", () => {
    const compared = CASES.map(({ differs }) => differs)
      .filter((differs) => differs !== undefined);
    assertEquals(
      documentedDeviations().sort(),
      [...new Set(compared), ...NOT_COMPARED].sort(),
    );
  });

  it(
    "-d keeps the data written last",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image(8 * MiB);
      for (let round = 1; round <= 5; round++) {
        await oursOk(own.path, path);
        const data = new Uint8Array(4 * MiB).fill(round);
        Deno.writeFileSync(own.path, data, { create: false });
        assertEquals(await ours(["-d", own.path]), {
          code: 0,
          stdout: "",
          stderr: "",
        });
        assertEquals(Deno.readFileSync(path).subarray(0, 4 * MiB), data);
      }
    }),
  );

  it(
    "-f skips a device that is held exclusively",
    withScratch(async (scratch) => {
      const path = scratch.image();
      using control = new LoopControl();
      using _held = holdExclusively(`/dev/loop${control.getUnbound()}`);
      const device = await oursOk("-f", "--show", path);
      assertEquals(scratch.devices(), [device]);
      await oursOk("-d", device);
    }),
  );

  it(
    ...unless(
      dropsPartitions(),
      "attaching removes partitions that the last file left",
    ),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const parts = scratch.image(8 * MiB, "parts.img");
      runOk("bash", "-c", `echo 2048,4096 | sfdisk -q '${parts}'`);
      runOk("losetup", own.path, parts);
      runOk("partx", "-a", own.path);
      runOk("losetup", "-d", own.path);
      assertEquals(partitionsOf(own.minor).length, 1);
      await oursOk(own.path, scratch.image());
      assertEquals(partitionsOf(own.minor), []);
      await oursOk("-d", own.path);
    }),
  );

  it(
    "a failure does not change the device",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      const state = () => [
        diskSequenceOf(own.name),
        ...["size", "ro", "queue/logical_block_size"]
          .map((name) => attribute(own.name, name)),
      ];
      const before = state();
      const failing = [
        ["-b", "1000", own.path, path],
        ["-o", "8E", own.path, path],
        [own.path, "/dev/loop-control"],
        [own.path, scratch.path],
      ];
      for (const args of failing) {
        assertEquals((await ours(args)).code, 1, args.join(" "));
        assertEquals(state(), before);
      }
    }),
  );

  it(
    "--loop-ref and the columns of later versions",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const path = scratch.image();
      const { dev } = Deno.statSync(path);
      const major = Math.floor(dev / 256) % 4096;
      const list = (columns: string) =>
        oursOk("-n", "--raw", "-O", columns, own.path);
      await oursOk("--loop-ref", "a name", own.path, path);
      assertEquals(
        await list("REF,MAJ,MIN,BACK-MAJ"),
        `a\\x20name 7 ${own.minor} ${major}`,
      );
      const { loopdevices: [device] } = JSON.parse(
        await oursOk("-J", "-O", "maj,back-min,ref", own.path),
      );
      assertEquals(device.maj, 7);
      assertEquals(typeof device["back-min"], "string");
      assertEquals(device.ref, "a name");
      await oursOk("-d", own.path);

      // 63 bytes are kept, even if that splits a character.
      await oursOk("--loop=" + "\xc3\xbc".repeat(40), own.path, path);
      using loop = new Loop(own.minor);
      assertEquals(loop.getInfo().bytes[56 + 62], 0xc3);
      assertEquals(loop.getInfo().bytes[56 + 63], 0);
      loop.close();
      await oursOk("-d", own.path);
      await oursOk(own.path, path);
      assertEquals(await list("REF"), path);
      await oursOk("-d", own.path);
    }),
  );

  it(
    "--remove removes only an unused device",
    withScratch(async (scratch) => {
      let missing;
      {
        using unused = new OwnDevice();
        missing = unused.minor;
      }
      using own = new OwnDevice();
      using control = new LoopControl();
      control.add(missing);
      const path = scratch.image();
      await oursOk(own.path, path);
      const devices = [own.path, `/dev/loop${2 ** 32 + own.minor}`];
      const { code, stderr } = await ours([
        "--remove",
        ...devices,
        `/dev/loop${missing}`,
      ]);
      assertEquals(code, 1);
      assertEquals(
        stderr,
        `losetup: ${own.path}: remove failed: Device or resource busy\n` +
          `losetup: ${devices[1]}: failed to use device: No such device\n`,
      );
      await oursOk("-d", own.path);
      assertEquals(
        (await ours(["--remove", `loop${missing}`])).stderr,
        `losetup: loop${missing}: remove failed: No such device\n`,
      );
      assertEquals((await ours(["--remove"])).code, 1);
      assertStringIncludes(
        (await ours(["--remove", "-f"])).stderr,
        "mutually exclusive arguments: --detach-all",
      );
    }),
  );
});

/** Creates a directory with our losetup as a program. */
function installed(scratch: Scratch): string {
  const bin = `${scratch.path}/bin`;
  Deno.mkdirSync(bin);
  const program = `${PROJECT}losetup.ts`;
  Deno.writeTextFileSync(
    `${bin}/losetup`,
    `#!/bin/sh\nexec '${Deno.execPath()}' run --quiet --no-check --no-prompt --allow-ffi '${program}' "$@"\n`,
    { mode: 0o755 },
  );
  return bin;
}

/** Runs a script with each losetup first in PATH, and expects equal results. */
function runWithEach(scratch: Scratch, script: string): string {
  const bin = installed(scratch);
  const file = `${scratch.path}/script`;
  Deno.writeTextFileSync(file, `set -eu\ncd '${scratch.path}'\n${script}`);
  const outputs = ["", `${bin}:`].map((path) => {
    const { code, stdout, stderr } = run(
      "bash",
      "-c",
      `PATH=${path}$PATH; . '${file}'`,
    );
    return { code, text: (stdout + stderr).replace(/loop\d+/g, "loop<n>") };
  });
  Deno.removeSync(bin, { recursive: true });
  const [theirs, ours] = outputs;
  assertEquals(ours, theirs);
  assertEquals(ours!.code, 0, ours!.text);
  assertEquals(scratch.devices(), []);
  return ours!.text;
}

describe(...onAnyKernel("losetup first in PATH", onDevices), () => {
  it(
    "builds a partitioned image, and detaches at the end",
    withScratch((scratch) => {
      const printed = runWithEach(
        scratch,
        `truncate -s 16M image
         echo 2048,8192 | sfdisk -q image
         loop=$(losetup --find --show --partscan image)
         trap 'losetup --detach "$loop"' EXIT
         cat /sys/block/\${loop#/dev/}/loop/partscan
         printf data | dd of="$loop" bs=1 seek=1048576 conv=notrunc status=none
         blockdev --getsize64 "$loop"
         losetup "$loop" > /dev/null && echo "$loop is used"
         truncate -s 32M image
         losetup -c "$loop"
         blockdev --getsize64 "$loop"`,
      );
      assertEquals(
        printed,
        `1\n${16 * MiB}\n/dev/loop<n> is used\n${32 * MiB}\n`,
      );
      const image = Deno.readFileSync(`${scratch.path}/image`);
      assertEquals(
        new TextDecoder().decode(image.subarray(MiB, MiB + 4)),
        "data",
      );
    }),
  );

  it(
    "attaches a partition by its offset, in two ways",
    withScratch((scratch) => {
      using own = new OwnDevice();
      const printed = runWithEach(
        scratch,
        `truncate -s 16M image
         echo 2048,8192 | sfdisk -q image
         set -- $(sfdisk -d image | sed -n 's/.*start= *\\([0-9]*\\), size= *\\([0-9]*\\).*/\\1 \\2/p')
         loop=$(losetup -f --show -o $(($1 * 512)) --sizelimit $(($2 * 512)) image)
         blockdev --getsize64 $loop
         losetup -d $loop
         losetup -f > /dev/null # others may take what it says
         loop=${own.path}
         losetup -r -o 1MiB $loop image
         blockdev --getro $loop
         losetup -d $loop`,
      );
      assertEquals(printed, `${4 * MiB}\n1\n`);
    }),
  );

  it(
    "finds the devices of a file, and detaches them, in many ways",
    withScratch((scratch) => {
      const printed = runWithEach(
        scratch,
        `truncate -s 4M image
         attach() { losetup -f image; losetup -fr -o 4096 image; }
         count() { losetup -j image | wc -l; }
         attach; count
         losetup -j image | cut -d: -f1 | xargs losetup -d; count
         attach
         for loop in $(losetup -nO NAME -j image); do losetup -d $loop; done; count
         attach
         losetup -a | grep "($PWD/image)" | awk -F: '{print $1}' | while read -r loop; do
           losetup -d "$loop"
         done; count
         attach
         losetup --list --noheadings --output NAME,BACK-FILE |
           awk -v file="$PWD/image" '$2 == file {print $1}' | xargs losetup --detach; count
         attach
         losetup --json --list --output NAME,BACK-FILE,RO | python3 -c "
import json, os, sys
for device in json.load(sys.stdin)['loopdevices']:
    if device['back-file'] == os.getcwd() + '/image':
        print(device['name'], type(device['ro']).__name__)
" | while read -r loop type; do losetup -d "$loop"; echo "$type"; done; count
         first=$(losetup -L -f --show image)
         again=$(losetup -L -f --show image)
         test "$first" = "$again" && losetup -l -O BACK-FILE "$first" | tail -n 1 | sed "s|$PWD/||"
         losetup -d "$first"; count`,
      );
      assertEquals(printed, "2\n0\n0\n0\n0\nbool\nbool\n0\nimage\n0\n");
    }),
  );

  it(
    ...unless(
      lackingByteArguments(),
      "gets names byte for byte, and gives them so",
    ),
    withScratch((scratch) => {
      for (const name of ["\\xff", "a\\xfe\\xff", "\\xef\\xbf\\xbd", "a\\nb"]) {
        const names = `name=$'${name}'; other=$'${name}\\xfd'`;
        runOk(
          "bash",
          "-c",
          `cd '${scratch.path}'; ${names}; truncate -s 1M "$name" "$other"`,
        );
        const printed = runWithEach(
          scratch,
          `${names}
           loop=$(losetup -f --show "$name")
           stat -c %i "$name"
           losetup -nO BACK-INO "$loop"
           losetup -j "$name" | LC_ALL=C sed 's/loop[0-9]*//' | od -An -c
           losetup -j "$other"
           losetup -JO BACK-FILE "$loop" | od -An -c
           losetup "$other" "$name" 2>&1 | od -An -c
           losetup -d "$loop"`,
        );
        const [inode, theirs] = printed.split("\n");
        assertEquals(theirs!.trim(), inode);
      }
    }),
  );

  it(
    "reports that the output cannot be written",
    withScratch((scratch) => {
      const printed = runWithEach(
        scratch,
        `losetup -f > /dev/full || echo "exit status $?"
         python3 -c '
import os, subprocess
reader, writer = os.pipe()
os.close(reader)
print(subprocess.run(["bash", "-c", "losetup -J; exit $?"], stdout=writer).returncode)'`,
      );
      assertMatch(printed, /write error: No space left on device/);
      assertMatch(printed, /^exit status 1\n141\n/);
    }),
  );

  it(
    "prints the device even if a warning cannot be written",
    withScratch(async (scratch) => {
      const path = scratch.image(MiB + 100);
      const { code, stdout } = run(
        "bash",
        "-c",
        `'${Deno.execPath()}' run -q --no-check --allow-ffi '${PROJECT}losetup.ts' -f --show '${path}' 2> /dev/full`,
      );
      assertEquals([code, [stdout.trim()]], [1, scratch.devices()]);
      await oursOk("-d", stdout.trim());
    }),
  );

  it(
    "obeys POSIXLY_CORRECT and the locale of the environment",
    withScratch((scratch) => {
      using own = new OwnDevice();
      scratch.image(MiB, "ü");
      const printed = runWithEach(
        scratch,
        `losetup ${own.path} ü
         POSIXLY_CORRECT=1 losetup ${own.path} -a 2>&1 || echo "exit status $?"
         losetup ${own.path} -a > /dev/null
         for locale in C C.UTF-8; do
           LC_ALL=$locale losetup -nO BACK-FILE ${own.path} | sed 's|.*/||'
         done
         losetup -d ${own.path}`,
      );
      assertStringIncludes(printed, "exit status 1\n\\xc3\\xbc\nü\n");
    }),
  );

  it("asks for a permission only when it needs one", () => {
    const bare = (...args: string[]) =>
      run(
        Deno.execPath(),
        ..."run --quiet --no-check --no-prompt".split(" "),
        `${PROJECT}losetup.ts`,
        ...args,
      );
    assertMatch(bare("--help").stdout, /--find .* first device/);
    assertEquals(bare("-V").stderr, "");
    const denied = bare("-l");
    assertEquals([denied.code, denied.stdout], [1, ""]);
    assertMatch(denied.stderr, /^losetup: Requires ffi access .*\n$/);
  });

  it("runs as a command of loopdev", () => {
    const { code, stdout } = run(
      Deno.execPath(),
      ..."run --quiet --no-check --no-prompt --allow-ffi".split(" "),
      `${PROJECT}cli.ts`,
      ..."losetup -J -V".split(" "),
    );
    assertEquals(code, 0);
    assertMatch(stdout, /^losetup from loopdev .* like util-linux 2\.38\.1\n$/);
  });
});
