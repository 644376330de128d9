/** Compares `loopdev mount`, `unmount` and `run --mount` with mount(8) and findmnt. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  attribute,
  CLI,
  cli,
  isSoon,
  lines,
  mounted,
  onDevices,
  type Output,
  run,
  runOk,
  type Scratch,
  Undo,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

function ext4(scratch: Scratch): { image: string; directory: string } {
  const image = scratch.image(8 * MiB);
  runOk("mkfs.ext4", "-q", "-F", image);
  const directory = `${scratch.path}/mnt`;
  Deno.mkdirSync(directory);
  return { image, directory };
}

function isMounted(directory: string): boolean {
  return run("mountpoint", "-q", directory).code === 0;
}

const RUN = "run -q --no-check --no-prompt --allow-ffi --allow-run".split(" ");

/** Runs `loopdev run` with the permission to run programs. */
function loopdevRun(...args: string[]): Output {
  return run(Deno.execPath(), ...RUN, CLI, "run", ...args);
}

describe("loopdev mount and unmount", onDevices, () => {
  it(
    "mount where every process sees it, and release the device",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      const done = cli("mount", "-O", "noatime,suid", image, directory);
      assertEquals(done, { code: 0, stdout: `${directory}\n`, stderr: "" });
      assertMatch(
        runOk("findmnt", "-n", "-o", "OPTIONS", directory),
        /^rw,nodev,noatime/,
      );
      assertEquals(scratch.devices().length, 1);
      Deno.writeTextFileSync(`${directory}/file`, "content");
      const undone = cli("unmount", directory);
      assertEquals(undone, { code: 0, stdout: "", stderr: "" });
      assertEquals(isMounted(directory), false);
      assertEquals(scratch.devices(), []);
      runOk("e2fsck", "-f", "-n", image);
    }),
  );

  it(
    "name the file that cannot be mounted, and options that are not theirs",
    withScratch((scratch) => {
      const { directory } = ext4(scratch);
      const empty = scratch.image(MiB, "empty.img");
      const failures = [
        cli("mount", empty, directory),
        loopdevRun("--mount", directory, empty, "--", "true"),
      ];
      for (const { code, stderr } of failures) {
        assertEquals(code, 1);
        assertStringIncludes(stderr, `Cannot mount "${empty}": `);
      }
      const habit = cli("mount", "-o", "ro", empty, directory);
      assertEquals(habit.code, 2);
      assertStringIncludes(habit.stderr, "mount options are for -O");
    }),
  );

  it(
    "end with the status of a signal that arrives in between",
    withScratch(async (scratch) => {
      const { image, directory } = ext4(scratch);
      const second = scratch.image(8 * MiB, "second.img");
      runOk("mkfs.ext4", "-q", "-F", second);
      const other = `${scratch.path}/other`;
      Deno.mkdirSync(other);
      cli("mount", image, directory);
      cli("mount", second, other);
      // The first directory is just being unmounted.
      const child = new Deno.Command("strace", {
        args: [
          ...["-f", "-qq", "-o", `${scratch.path}/log`, "-e", "trace=umount2"],
          ...["-e", "inject=umount2:delay_enter=1000000", Deno.execPath()],
          ...["run", "-q", "--no-check", "--allow-ffi", CLI],
          ...["unmount", directory, other],
        ],
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).spawn();
      const children = `/proc/${child.pid}/task/${child.pid}/children`;
      const log = `${scratch.path}/log`;
      assert(isSoon(() => run("grep", "-q", "umount2", log).code === 0));
      Deno.kill(Number(Deno.readTextFileSync(children).trim()), "SIGINT");
      const { code, stderr } = await child.output();
      assertEquals([code, new TextDecoder().decode(stderr)], [130, ""]);
      assertEquals([isMounted(directory), isMounted(other)], [false, true]);
      cli("unmount", other);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "accept devices, partitions and their names, and several directories",
    withScratch((scratch) => {
      const image = scratch.image(20 * MiB);
      runOk(
        "bash",
        "-c",
        `printf 'label: gpt\\nsize=8M, name=one\\nsize=8M, name=two\\n' | sfdisk -q ${image}`,
      );
      const device = cli("attach", "-P", image).stdout.trim();
      const directories = ["1", "2"].map((number) => {
        runOk("mkfs.ext4", "-q", `${device}p${number}`);
        const directory = `${scratch.path}/${number}`;
        Deno.mkdirSync(directory);
        return directory;
      });
      const name = device.replace("/dev/", "");
      const [one, two] = directories as [string, string];
      assertMatch(cli("mount", name, one).stderr, /several file systems: 1 /);
      assertEquals(cli("mount", "-p", "one", name, one).code, 0);
      assertEquals(cli("mount", `${device}p2`, two).code, 0);
      assertEquals(runOk("findmnt", "-n", "-o", "SOURCE", two), `${device}p2`);
      assertEquals(cli("unmount", ...directories).stderr, "");
      assertEquals(directories.filter(isMounted), []);
      assertEquals(scratch.devices(), [device]); // attached without autoclear
      assertEquals(cli("detach", device).code, 0);

      // A device attached by the first of two mounts is detached with the last one.
      assertEquals(cli("mount", "-p1", image, one).code, 0);
      const [again] = scratch.devices();
      assertEquals(cli("mount", "-p2", again!, two).code, 0);
      assertEquals(cli("unmount", one), { code: 0, stdout: "", stderr: "" });
      assertEquals(scratch.devices(), [again]);
      assertEquals(cli("unmount", two).code, 0);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "take the sector size of the GPT, also in run --mount",
    withScratch((scratch) => {
      const { directory } = ext4(scratch);
      const image = scratch.image(16 * MiB, "4096.img");
      const device = cli("attach", "-b", "4096", image).stdout.trim();
      runOk(
        "sh",
        "-c",
        `printf 'label: gpt\\nsize=8M\\n' | sfdisk -q ${device} 2>&1`,
      );
      cli("partitions", device);
      runOk("mkfs.ext4", "-q", `${device}p1`);
      cli("detach", device);
      assertEquals(cli("mount", image, directory).stderr, "");
      assertEquals(cli("unmount", directory).stderr, "");
      const shown = loopdevRun(
        ...["--mount", directory, image, "--", "stat", "-f", "-c", "%T"],
        directory,
      );
      assertEquals(shown.stdout, "ext2/ext3\n");
    }),
  );

  it(
    "say who keeps a device attached in another mount namespace",
    withScratch(async (scratch) => {
      const { image, directory } = ext4(scratch);
      assertEquals(cli("mount", image, directory).code, 0);
      const [device] = scratch.devices();
      const other = new Deno.Command("unshare", {
        args: "--mount --propagation private sh -c".split(" ")
          .concat("echo ready; exec sleep 60"),
        stdout: "piped",
      }).spawn();
      using _end = new Undo(() => other.kill());
      for await (const _ready of lines(other.stdout)) break;
      const { code, stderr } = cli("unmount", directory);
      assertEquals(code, 0);
      assertMatch(
        stderr,
        new RegExp(
          `warning: ${device} stays attached: mounted on ${directory}`,
        ),
      );
      _end[Symbol.dispose]();
      await other.status;
      assert(isSoon(() => scratch.devices().length === 0));
    }),
  );

  it(
    "unmount mounts of mount(8), and refuse file systems of other devices",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      runOk("mount", "-o", "loop", image, directory);
      assertEquals(cli("unmount", directory).stderr, "");
      assertEquals(scratch.devices(), []);
      const failed = cli("unmount", directory);
      assertEquals(failed.code, 1);
      assertMatch(failed.stderr, /it is not a mount point/);
      assertStringIncludes(
        cli("unmount", image).stderr,
        `Cannot unmount "${image}": not a directory (ENOTDIR)\n`,
      );
      using _tmpfs = mounted("-t", "tmpfs", "other", directory);
      assertMatch(
        cli("unmount", directory).stderr,
        /"other" is mounted there, which is not a loop device: umount unmounts it/,
      );
      // Any user can name the source of a file system in a FUSE.
      const device = runOk("losetup", "--find", "--show", image);
      using _device = new Undo(() => runOk("losetup", "--detach", device));
      using _claim = mounted("-t", "tmpfs", device, directory);
      assertMatch(
        cli("unmount", directory).stderr,
        /"\/dev\/loop\d+" is mounted there, which is not a loop device/,
      );
    }),
  );

  it(
    "name the users of a busy directory, and leave it mounted",
    withScratch(async (scratch) => {
      const { image, directory } = ext4(scratch);
      cli("mount", image, directory);
      const child = new Deno.Command("sleep", {
        args: ["1000"],
        cwd: directory,
      }).spawn();
      const busy = cli("unmount", "--timeout", "50ms", directory);
      assertEquals(busy.code, 1);
      assertMatch(
        busy.stderr,
        /^loopdev: Cannot unmount .*: in use by process \d+ \(sleep\): .*; it stays mounted\n$/,
      );
      assert(isMounted(directory));
      assertEquals(cli("unmount", "--lazy", directory).code, 0);
      assert(!isMounted(directory));
      child.kill("SIGKILL");
      await child.status;
    }),
  );

  it(
    "leave no mount and no device when they fail",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      const failing = [
        [`${image}`, `${scratch.path}/missing`],
        ["-t", "xfs", image, directory],
        ["-O", "nonsense", image, directory],
        ["-p", "7", image, directory],
      ];
      for (const args of failing) {
        const { code, stdout, stderr } = cli("mount", ...args);
        assertEquals([code, stdout], [1, ""]);
        assertMatch(stderr, /^loopdev: Cannot mount [^\n]+\n$/);
      }
      // A mount whose path cannot be printed is undone.
      const { code } = run(
        "sh",
        ...["-c", 'exec "$@" > /dev/full', "sh", Deno.execPath(), ...RUN],
        ...[CLI, "mount", image, directory],
      );
      assertEquals(code, 1);
      assert(!isMounted(directory));
      assert(isSoon(() => scratch.devices().length === 0));
    }),
  );

  it(
    "attach read-only for -r and -O ro",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      for (const option of ["-r", "-Oro"]) {
        assertEquals(cli("mount", option, image, directory).stderr, "");
        const [device] = scratch.devices();
        assertEquals(attribute(device!.replace("/dev/", ""), "ro"), "1");
        assertMatch(runOk("findmnt", "-n", "-o", "OPTIONS", directory), /^ro,/);
        assertEquals(cli("unmount", directory).code, 0);
      }
    }),
  );

  it(
    "exit with status 2 for wrong usage",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      const wrong = [
        ["mount", image],
        ["mount"],
        ["mount", image, directory, "more"],
        ["mount", "-p", "0", image, directory],
        ["mount", "-t", "a b", image, directory],
        ["mount", "-O", "source=x", image, directory],
        ["unmount"],
        ["run", "--partition", "1", image, "--", "true"],
        ["run", "--mount", directory, image, image, "--", "true"],
      ];
      for (const args of wrong) assertEquals(cli(...args).code, 2, `${args}`);
      const device = cli("attach", image).stdout.trim();
      const refused = cli("mount", "--offset", "1M", device, directory);
      assertEquals(refused.code, 2);
      assertMatch(
        refused.stderr,
        /--offset is for a FILE, and this is a device/,
      );
      assertEquals(cli("detach", device).code, 0);
    }),
  );
});

describe("loopdev run --mount", onDevices, () => {
  it(
    "shows the file system to the command, and to no other process",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      const script = `
        findmnt -n -o TARGET,FSTYPE "$0" && cd "$0" && pwd && echo content > file
        grep -c " $0 " /proc/${Deno.pid}/mountinfo
        exit 3`;
      const { code, stdout } = loopdevRun(
        ...["--mount", directory, image, "--", "sh", "-c", script, directory],
      );
      assertEquals(code, 3);
      assertEquals(
        stdout.replace(/ +/g, " "),
        `${directory} ext4\n${directory}\n0\n`,
      );
      const mounts = Deno.readTextFileSync("/proc/self/mountinfo");
      assertEquals(mounts.includes(directory), false);
      assertEquals(scratch.devices(), []);
      assertEquals([...Deno.readDirSync(directory)], []);
      runOk("e2fsck", "-f", "-n", image);
      const again = loopdevRun(
        ...["-r", "--mount", directory, image, "--", "cat"],
        `${directory}/file`,
      );
      assertEquals(again.stdout, "content\n");
      const shown = loopdevRun(
        ...["--mount", directory, "-t", "ext4", "-O", "ro,noatime", image],
        ...["--", "findmnt", "-n", "-o", "OPTIONS", directory],
      );
      assertMatch(shown.stdout, /^ro,nosuid,nodev,noatime/);
      assertEquals(loopdevRun("-O", "ro", image, "--", "true").code, 2);
      const forgotten = loopdevRun(image, "echo", "hi");
      assertStringIncludes(forgotten.stderr, "the command comes after --");
    }),
  );

  it(
    "unmounts when it is interrupted",
    withScratch(async (scratch) => {
      const { image, directory } = ext4(scratch);
      const child = new Deno.Command(Deno.execPath(), {
        args: [
          ...RUN,
          ...[CLI, "run", "--mount", directory, image, "--", "sh", "-c"],
          ...["echo ready; exec sleep 1000"],
        ],
        stdout: "piped",
      }).spawn();
      const output = lines(child.stdout);
      assertEquals((await output.next()).value, "ready");
      assertEquals(scratch.devices().length, 1);
      child.kill("SIGINT");
      assertEquals((await child.status).code, 130);
      await output.return(undefined);
      assertEquals(scratch.devices(), []);
    }),
  );

  it(
    "keeps the mount for processes that outlive the command",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      const script =
        `cd "$0"; (sleep 0.5; echo late > file) > /dev/null 2>&1 < /dev/null &`;
      const done = loopdevRun(
        ...["--mount", directory, image, "--", "sh", "-c", script, directory],
      );
      assertEquals(done, { code: 0, stdout: "", stderr: "" });
      assertEquals(scratch.devices(), []);
      assertEquals(run("debugfs", "-R", "cat file", image).stdout, "late\n");
    }),
  );

  it(
    "runs no command if it cannot mount",
    withScratch((scratch) => {
      const { image, directory } = ext4(scratch);
      const missing = `${scratch.path}/missing`;
      for (
        const args of [["--mount", missing], ["-p2", "--mount", directory]]
      ) {
        const { code, stdout, stderr } = loopdevRun(
          ...args,
          ...[image, "--", "echo", "was run"],
        );
        assertEquals([code, stdout], [1, ""]);
        assertStringIncludes(stderr, "Cannot mount");
      }
    }),
  );
});
