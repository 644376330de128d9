import {
  attach,
  FileDescriptor,
  LoopError,
  openDirectory,
  openFile,
  openMemory,
} from "@loopdev/loopdev";
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { script } from "./namespace.ts";
import { onDevices, run, runOk, withScratch } from "./support.ts";

function code(call: () => unknown): string {
  return assertThrows(call, LoopError).code;
}

function flags(fd: number): number {
  const info = Deno.readTextFileSync(`/proc/self/fdinfo/${fd}`);
  return parseInt(/flags:\s+(\d+)/.exec(info)![1]!, 8);
}

const O_CLOEXEC = 0o2000000;

describe("openFile()", onDevices, () => {
  it(
    "opens files and block devices, for writing or reading",
    withScratch((scratch) => {
      const path = scratch.image();
      using both = openFile(path);
      using reading = openFile(path, { readOnly: true });
      using direct = openFile(path, { directIo: true });
      assertEquals(flags(both.fd) & 3, 2);
      assertEquals(flags(reading.fd) & 3, 0);
      for (const { fd } of [both, reading, direct]) {
        assert((flags(fd) & O_CLOEXEC) !== 0);
      }
      const O_DIRECT = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;
      assert((flags(direct.fd) & O_DIRECT) !== 0);
      assert((flags(both.fd) & O_DIRECT) === 0);
      using device = openFile("/dev/loop0", { readOnly: true });
      assert(device.fd >= 0);
    }),
  );

  it(
    "refuses other kinds of files, and does not hang on a FIFO",
    withScratch((scratch) => {
      runOk("mkfifo", `${scratch.path}/fifo`);
      using _socket = Deno.listen({
        transport: "unix",
        path: `${scratch.path}/socket`,
      });
      const refused = (path: string, errno: string, kind: string) => {
        for (const readOnly of [false, true]) {
          const error = assertThrows(
            () => openFile(path, { readOnly }),
            LoopError,
            kind,
          );
          assertEquals(error.code, errno);
          assertEquals(error.operation, "open");
          assertEquals(error.path, path);
        }
      };
      refused(scratch.path, "EISDIR", "a directory");
      refused("/dev/null", "EINVAL", "a character device");
      refused(`${scratch.path}/fifo`, "EINVAL", "a FIFO");
      refused(`${scratch.path}/socket`, "EINVAL", "a socket");
      refused(`${scratch.path}/none`, "ENOENT", "no such file");
      refused(`${scratch.path}/${"x".repeat(300)}`, "ENAMETOOLONG", "too long");
      refused("", "ENOENT", "no such file");
    }),
  );

  it(
    "opens names with spaces, newlines and bytes that are not UTF-8",
    withScratch((scratch) => {
      for (const name of ["a b", "a\nb", "é", '"', "\\", "x".repeat(255)]) {
        using file = openFile(scratch.image(512, name));
        assertEquals(
          Deno.readLinkSync(`/proc/self/fd/${file.fd}`),
          `${scratch.path}/${name}`,
        );
      }
      runOk("bash", "-c", `echo odd > '${scratch.path}/'$'\\xff\\xfe'`);
      using file = openFile(new URL(`file://${scratch.path}/%ff%fe`));
      assertEquals(Deno.readTextFileSync(`/proc/self/fd/${file.fd}`), "odd\n");
    }),
  );

  it(
    "follows symbolic links, or refuses them in any part of the path",
    withScratch((scratch) => {
      const path = scratch.image();
      Deno.symlinkSync(path, `${scratch.path}/link`);
      Deno.symlinkSync(scratch.path, `${scratch.path}/here`);
      const symlinks = "refuse";
      openFile(path, { symlinks, directIo: true }).close();
      for (const name of ["link", "here/disk.img"]) {
        const link = `${scratch.path}/${name}`;
        openFile(link).close();
        openFile(link, { symlinks: "follow" }).close();
        const error = assertThrows(
          () => openFile(link, { symlinks }),
          LoopError,
          "a symbolic link, which",
        );
        assertEquals([error.code, error.path], ["ELOOP", link]);
      }
      const missing = `${scratch.path}/none`;
      assertEquals(code(() => openFile(missing, { symlinks })), "ENOENT");
    }),
  );

  it(
    "names the kernel version if it cannot refuse symbolic links",
    withScratch((scratch) => {
      const body = `await tell(() =>
        loopdev.openFile("${scratch.image()}", { symlinks: "refuse" }));`;
      Deno.writeTextFileSync(`${scratch.path}/old.ts`, script(body));
      const { stdout, stderr } = run(
        "strace",
        ..."-f -qq -o /dev/null -e trace=openat2 -e inject=openat2:error=ENOSYS"
          .split(" "),
        Deno.execPath(),
        ..."run -q --no-check --allow-ffi".split(" "),
        `${scratch.path}/old.ts`,
      );
      assertMatch(stdout, /^LoopError ENOSYS .* requires Linux 5\.6/, stderr);
    }),
  );

  it(
    "names the descriptor limit if it is the cause",
    withScratch((scratch) => {
      const path = scratch.image();
      const script = `
        import { openFile } from "${new URL("../../mod.ts", import.meta.url)}";
        const files = [];
        try {
          for (;;) files.push(openFile("${path}"));
        } catch (error) {
          files.forEach((file) => file.close());
          console.log(error.message);
        }`;
      Deno.writeTextFileSync(`${scratch.path}/limit.ts`, script);
      const { stdout } = run(
        "bash",
        "-c",
        `ulimit -n 64; '${Deno.execPath()}' run -q --no-check --allow-ffi '${scratch.path}/limit.ts'`,
      );
      assertMatch(stdout, /too many open files \(EMFILE\)/);
    }),
  );
});

describe("attach() with symlinks", onDevices, () => {
  it(
    "refuses a symbolic link in any part of the path, and accepts descriptors",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const link = `${scratch.path}/link`;
      Deno.symlinkSync(path, link);
      const symlinks = "refuse";
      for (const readOnly of [false, true]) {
        const error = await assertRejects(
          () => attach(link, { symlinks, readOnly }),
          LoopError,
        );
        assertEquals([error.code, error.path], ["ELOOP", link]);
        await using a = await attach(path, { symlinks, readOnly });
        await a.detach();
      }
      using file = openFile(link);
      await using b = await attach(file, { symlinks });
      await b.detach();
    }),
  );
});

describe("openDirectory()", onDevices, () => {
  it(
    "opens only directories",
    withScratch((scratch) => {
      using directory = openDirectory(scratch.path);
      assert((flags(directory.fd) & O_CLOEXEC) !== 0);
      assertEquals(code(() => openDirectory(scratch.image())), "ENOTDIR");
      assertEquals(code(() => openDirectory("/nowhere")), "ENOENT");
      using same = openDirectory(new URL(`file://${scratch.path}/`));
      assertEquals(
        Deno.readLinkSync(`/proc/self/fd/${same.fd}`),
        scratch.path,
      );
    }),
  );
});

describe("openMemory()", onDevices, () => {
  it(
    "contains a copy of the bytes, or the given number of zeros",
    withScratch(() => {
      const content = new Uint8Array(10000).map((_, at) => at);
      using bytes = openMemory(content.subarray(1));
      content.fill(0, 0, 5000);
      const copy = Deno.readFileSync(`/proc/self/fd/${bytes.fd}`);
      assertEquals(copy.length, 9999);
      assertEquals([...copy.subarray(0, 3)], [1, 2, 3]);
      using zeros = openMemory(4097);
      assertEquals(
        Deno.readFileSync(`/proc/self/fd/${zeros.fd}`),
        new Uint8Array(4097),
      );
      using empty = openMemory(0);
      assertEquals(Deno.statSync(`/proc/self/fd/${empty.fd}`).size, 0);
      using large = openMemory(2 ** 40);
      assertEquals(Deno.statSync(`/proc/self/fd/${large.fd}`).size, 2 ** 40);
      assert((flags(bytes.fd) & O_CLOEXEC) !== 0);
    }),
  );
});

describe("FileDescriptor", onDevices, () => {
  it(
    "closes once, even if the number was reused for another file",
    withScratch((scratch) => {
      const first = openFile(scratch.image());
      const { fd } = first;
      first.close();
      assertEquals(first.fd, -1);
      using second = openFile(scratch.image());
      assertEquals(second.fd, fd);
      first.close();
      first[Symbol.dispose]();
      assertEquals(Deno.readLinkSync(`/proc/self/fd/${fd}`), scratch.image());
      assertThrows(() => new FileDescriptor(-1), RangeError);
    }),
  );
});
