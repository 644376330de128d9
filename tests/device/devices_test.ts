import {
  attach,
  detach,
  find,
  inspect,
  list,
  type LoopDevice,
  LoopError,
  openMemory,
  StaleDeviceError,
  UnexpectedDevice,
} from "@loopdev/loopdev";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { pageSize } from "../../lib/sys/page_cache.ts";
import { numbersIn } from "../../lib/sys/sysfs.ts";
import {
  attribute,
  CLI,
  diskSequenceOf,
  losetupDetach,
  mounted,
  noDiskSequence,
  onDevices,
  OwnDevice,
  runOk,
  Scratch,
  times,
  traced,
  unless,
  withScratch,
} from "./support.ts";

const MiB = 1 << 20;

function only(devices: LoopDevice[], path: string): LoopDevice {
  const found = devices.find((device) => device.path === path);
  assert(found !== undefined, `${path} is not listed`);
  return found;
}

/** Returns losetup's description of a device. */
function losetup(path: string): Record<string, unknown> {
  const { loopdevices } = JSON.parse(
    runOk("losetup", "--json", "--list", "--output-all", path),
  );
  return loopdevices[0];
}

/** Yields combinations of all options. */
function* combinations(): Generator<Parameters<typeof attach>[1] & object> {
  const offsets = [0, 4096, 512 * 1024];
  const sizelimits = [0, 8192, 2 ** 40];
  const blockSizes = [undefined, 512, 4096];
  for (let index = 0; index < 36; index++) {
    yield {
      offset: offsets[index % 3]!,
      sizelimit: sizelimits[Math.floor(index / 3) % 3]!,
      blockSize: blockSizes[(index + Math.floor(index / 9)) % 3],
      readOnly: index % 2 === 0,
      partscan: index % 4 < 2,
      autoclear: index % 8 < 4,
      ...(index % 5 === 0 && { directIo: true, blockSize: 4096 }),
    };
  }
}

describe("list()", onDevices, () => {
  it(
    "equals losetup and sysfs for every combination of options",
    withScratch(async (scratch) => {
      const path = scratch.image(4 * MiB, "a file");
      let count = 0;
      for (const options of combinations()) {
        await using a = await attach(path, options);
        const device = only(list(), a.path);
        const status = a.loop.getStatus();
        const theirs = losetup(a.path);
        const name = device.name;
        assertEquals(
          {
            name: device.path,
            "back-file": device.backingFile,
            offset: device.offset,
            sizelimit: device.sizelimit,
            autoclear: device.autoclear,
            ro: device.readOnly,
            dio: device.directIo,
            partscan: device.partscan,
            "log-sec": device.blockSize,
            "back-ino": Number(status.backingInode),
          },
          {
            name: theirs["name"],
            "back-file": theirs["back-file"],
            offset: theirs["offset"],
            sizelimit: theirs["sizelimit"],
            autoclear: theirs["autoclear"],
            ro: theirs["ro"],
            dio: theirs["dio"],
            partscan: theirs["partscan"],
            "log-sec": theirs["log-sec"],
            "back-ino": theirs["back-ino"],
          } as Record<string, unknown>,
        );
        assertEquals({
          offset: status.offset,
          sizelimit: status.sizelimit,
          autoclear: status.autoclear,
          readOnly: status.readOnly,
          directIo: status.directIo,
          partscan: status.partscan,
        }, {
          offset: device.offset,
          sizelimit: device.sizelimit,
          autoclear: device.autoclear,
          readOnly: device.readOnly,
          directIo: device.directIo,
          partscan: device.partscan,
        });
        assertEquals(device.size, Number(attribute(name, "size")) * 512);
        assertEquals(device.size, a.size);
        assertEquals(device.diskSequence, diskSequenceOf(name));
        assertEquals(device.diskSequence, a.diskSequence);
        assertEquals(device.minor, a.minor);
        assertEquals(device.deleted, false);
        assertEquals(options.directIo ?? false, device.directIo);
        count++;
      }
      assertEquals(count, 36);
    }),
  );

  it(
    "is in numeric order, and plain data",
    withScratch(async (scratch) => {
      using a = new OwnDevice();
      using b = new OwnDevice();
      await using first = await attach(scratch.image(), { minor: a.minor });
      await using second = await attach(scratch.image(MiB, "second"), {
        minor: b.minor,
      });
      const devices = list();
      const numbers = devices.map(({ minor }) => minor);
      assertEquals(numbers, [...numbers].sort((x, y) => x - y));
      assertEquals(JSON.parse(JSON.stringify(devices)), devices);
      await first.detach();
      await second.detach();
      assert(!list().some(({ minor }) => minor === a.minor));
    }),
  );

  it(
    "distinguishes deleted files from files with such names, and follows renames",
    withScratch(async (scratch) => {
      const { path } = scratch;
      const literal = scratch.image(MiB, "x (deleted)");
      await using a = await attach(literal);
      assertEquals(only(list(), a.path).backingFile, literal);
      assertEquals(only(list(), a.path).deleted, false);

      await using b = await attach(scratch.image(MiB, "y"));
      Deno.renameSync(`${path}/y`, `${path}/z`);
      assertEquals(only(list(), b.path).backingFile, `${path}/z`);
      Deno.removeSync(`${path}/z`);
      const deleted = only(list(), b.path);
      assertEquals([deleted.backingFile, deleted.deleted], [`${path}/z`, true]);
      // Another file gets the name that the kernel shows.
      scratch.image(MiB, "z (deleted)");
      assertEquals(only(list(), b.path).deleted, true);

      // A deleted file whose own name ends in " (deleted)".
      Deno.removeSync(literal);
      assertEquals(only(list(), a.path).backingFile, literal);
      assertEquals(only(list(), a.path).deleted, true);
      await a.detach();
      await b.detach();
    }),
  );

  it(
    "returns odd names, and an empty one for a path too long for the kernel",
    withScratch(async (scratch) => {
      const name = 'new\nline, "quote", \\ and é';
      await using a = await attach(scratch.image(512, `${name}\n`));
      assertEquals(
        only(list(), a.path).backingFile,
        `${scratch.path}/${name}\n`,
      );
      runOk("bash", "-c", `truncate -s 512 '${scratch.path}/'$'\\xff'`);
      await using b = await attach(new URL(`file://${scratch.path}/%ff`));
      assertEquals(
        only(list(), b.path).backingFile,
        `${scratch.path}/\ufffd`,
      );
      // A path of one page. Deno cannot create a path this long in one call.
      const part = "d".repeat(250);
      const depth = Math.ceil(pageSize() / part.length);
      runOk(
        "bash",
        "-c",
        `cd '${scratch.path}'; for i in $(seq ${depth}); do mkdir ${part}; cd ${part}; done; truncate -s 512 f; exec '${Deno.execPath()}' run -q --no-check --allow-ffi '${CLI}' attach f > '${scratch.path}/out'`,
      );
      const device = Deno.readTextFileSync(`${scratch.path}/out`).trim();
      assertEquals(only(list(), device).backingFile, "");
      assertEquals(only(list(), device).size, 512);
      losetupDetach(device);
      runOk("bash", "-c", `rm -rf '${scratch.path}/${part}'`);
      await a.detach();
      await b.detach();
    }),
  );

  it(
    "does not throw for a device whose path is too long to look up",
    withScratch(async (scratch) => {
      const path = scratch.image(512, "n".repeat(250));
      await using a = await attach(path);
      Deno.removeSync(path);
      const device = only(list(), a.path);
      assertEquals([device.backingFile, device.deleted], [path, true]);
      assertEquals(find(scratch.image()), []);
      await a.detach();
    }),
  );

  it(
    "clamps a limit that is not a safe integer",
    withScratch(async (scratch) => {
      await using a = await attach(scratch.image(), {
        sizelimit: 2n ** 63n - 1n,
      });
      assertEquals(only(list(), a.path).sizelimit, Number.MAX_SAFE_INTEGER);
      await a.detach();
    }),
  );

  it(
    "returns the name of a file in memory",
    withScratch(async () => {
      using memory = openMemory(4096);
      await using a = await attach(memory);
      const device = only(list(), a.path);
      assertEquals(device.backingFile, "/memfd:loopdev");
      assertEquals(device.deleted, true);
      await a.detach();
    }),
  );

  it(
    "never mixes two bindings in a row, beside processes that attach and detach",
    withScratch(async (scratch) => {
      const mod = new URL("../../mod.ts", import.meta.url).href;
      const wanted = new Map<string, Partial<LoopDevice>>();
      const children = [0, 1, 2, 3].map((number) => {
        const image = scratch.image(4 * MiB, `image${number}`);
        const options = {
          offset: 4096 * (number + 1),
          sizelimit: MiB,
          blockSize: number % 2 === 0 ? 4096 : 1024,
          readOnly: number > 1,
        };
        wanted.set(image, {
          ...options,
          size: MiB,
          autoclear: true,
          partscan: false,
          directIo: false,
          deleted: false,
        });
        return new Deno.Command(Deno.execPath(), {
          args: [
            "eval",
            "--quiet",
            `const { attach } = await import("${mod}");
             for (let count = 0; count < ${times(1000)}; count++) {
               await (await attach("${image}", ${
              JSON.stringify(options)
            })).detach();
             }`,
          ],
        }).spawn();
      });
      let left = children.length;
      const ends = children.map(async (child) => {
        const { success } = await child.status;
        left--;
        assert(success);
      });
      let rows = 0;
      while (left > 0) {
        for (const device of list()) {
          const expected = wanted.get(device.backingFile);
          if (expected === undefined) continue;
          rows++;
          assertEquals({ ...device, ...expected }, device);
        }
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
      await Promise.all(ends);
      assert(rows > 0);
    }),
  );

  it(
    "lists a device of size 0",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      runOk("losetup", own.path, scratch.image(100));
      const device = only(list(), own.path);
      assertEquals([device.size, device.backingFile], [
        0,
        `${scratch.path}/disk.img`,
      ]);
      await detach(own.path);
    }),
  );

  it("opens nothing in /dev, and needs no privileges", () => {
    using scratch = new Scratch();
    const script = `
      import { list } from "${new URL("../../mod.ts", import.meta.url)}";
      console.log(list().length);`;
    Deno.writeTextFileSync(`${scratch.path}/list.ts`, script);
    const image = scratch.image();
    const device = runOk("losetup", "--find", "--show", image);
    const { stdout, stderr, trace } = traced(
      `${scratch.path}/list.ts`,
      "openat,open,ioctl",
    );
    assert(Number(stdout) >= 1, stderr);
    assert(trace.includes("backing_file"));
    const opened = trace.split("\n").filter((line) => /\/dev\/loop/.test(line));
    assertEquals(opened, []);
    losetupDetach(device);
    scratch.check();
  });
});

describe("numbersIn()", onDevices, () => {
  it(
    "takes only decimal numbers without leading zeros",
    withScratch((scratch) => {
      const names = "loop loop0 loop7 loop12 loop1048575 loop07 loop00 loop5p1";
      for (
        const name of `${names} loop-control loop5é xloop5 Loop5`.split(" ")
      ) {
        Deno.writeTextFileSync(`${scratch.path}/${name}`, "");
      }
      const many = [...Array(3000).keys()].map((number) => 2000 + number);
      for (const number of many) {
        Deno.writeTextFileSync(`${scratch.path}/loop${number}`, "");
      }
      const prefix = new TextEncoder().encode("loop");
      const numbers = numbersIn(scratch.path, prefix);
      assert(typeof numbers !== "number");
      const wanted = [0, 7, 12, ...many, 1048575];
      assertEquals(numbers.sort((a, b) => a - b), wanted);
      assertEquals(numbersIn(`${scratch.path}/none`, prefix), -2); // ENOENT
    }),
  );
});

describe("list() with a filter", onDevices, () => {
  it(
    "lists files in a directory, by its canonical path, deleted or not",
    withScratch(async (scratch) => {
      const directory = `${scratch.path}/a`;
      Deno.mkdirSync(`${directory}/below`, { recursive: true });
      Deno.mkdirSync(`${scratch.path}/ab`);
      Deno.symlinkSync(directory, `${scratch.path}/link`);
      await using one = await attach(scratch.image(MiB, "a/one"));
      await using two = await attach(scratch.image(MiB, "a/below/two"));
      await using other = await attach(scratch.image(MiB, "ab/other"));
      const paths = (filter: Parameters<typeof list>[0]) =>
        list(filter).map(({ path }) => path).sort();
      const both = [one.path, two.path].sort();
      for (
        const under of [directory, `${directory}//`, `${scratch.path}/link`]
      ) {
        assertEquals(paths({ under }), both);
      }
      assertEquals(paths({ under: new URL(`file://${directory}/below`) }), [
        two.path,
      ]);
      Deno.removeSync(`${directory}/below`, { recursive: true });
      assertEquals(paths({ under: `${directory}/below` }), [two.path]);
      assertEquals(paths({ under: directory, deleted: true }), [two.path]);
      assertEquals(paths({ under: directory, deleted: false }), [one.path]);
      assertEquals(paths({ under: `${scratch.path}/none` }), []);
      for (const device of [one, two, other]) await device.detach();
    }),
  );

  it(
    "finds devices by their reference, and returns it",
    withScratch(async (scratch) => {
      const reference = `test ${crypto.randomUUID()}`;
      const options = { reference };
      await using a = await attach(scratch.image(MiB, "a"), options);
      await using b = await attach(scratch.image(MiB, "b"), options);
      const found = list(options);
      assertEquals(
        found.map(({ path }) => path).sort(),
        [a.path, b.path].sort(),
      );
      assertEquals(found[0]!.reference, reference);
      assertEquals(list({ reference: `${reference}!` }), []);
      assert(list().every((device) => !("reference" in device)));
      await a.detach();
      await b.detach();
    }),
  );

  it("refuses unknown filters before it reads anything", () => {
    for (
      const filter of [{ below: "/" }, { under: 7 }, { deleted: "yes" }, {
        reference: 7,
      }]
    ) {
      assertThrows(() => list(filter as Parameters<typeof list>[0]), TypeError);
    }
  });
});

describe("inspect()", onDevices, () => {
  it(
    "returns the row of one device, by any reference to it",
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      assertEquals(inspect(own.path), undefined);
      const a = await attach(scratch.image(), { minor: own.minor });
      const row = list().find(({ minor }) => minor === own.minor)!;
      for (const device of [own.path, own.name, own.minor, row, a]) {
        assertEquals(inspect(device), row);
      }
      await a.detach();
      assertThrows(() => inspect("/dev/null"), UnexpectedDevice);
      assertThrows(() => inspect(`${scratch.path}/none`), LoopError);
      let gone;
      {
        using other = new OwnDevice();
        gone = other.path;
      }
      assertEquals(inspect(gone), undefined);
    }),
  );

  it(
    ...unless(noDiskSequence, "refuses a recycled device"),
    withScratch(async (scratch) => {
      using own = new OwnDevice();
      const a = await attach(scratch.image(), { minor: own.minor });
      const row = inspect(own.path)!;
      await a.detach();
      runOk("losetup", own.path, scratch.image(MiB, "other"));
      assertThrows(() => inspect(row), StaleDeviceError);
    }),
  );
});

describe("find()", onDevices, () => {
  it(
    "finds by device and inode, not by name",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const other = scratch.image(MiB, "other.img");
      await using a = await attach(path);
      await using b = await attach(path, { offset: 4096, overlap: "allow" });
      const paths = (file: string | URL, options = {}) =>
        find(file, options).map(({ path }) => path).sort();
      const both = [a.path, b.path].sort();
      assertEquals(paths(path), both);
      assertEquals(paths(new URL(`file://${path}`)), both);
      Deno.symlinkSync(path, `${scratch.path}/symbolic`);
      Deno.linkSync(path, `${scratch.path}/hard`);
      assertEquals(paths(`${scratch.path}/symbolic`), both);
      assertEquals(paths(`${scratch.path}/hard`), both);
      assertEquals(paths(path, { offset: 4096 }), [b.path]);
      assertEquals(paths(path, { offset: 0n }), [a.path]);
      assertEquals(paths(other), []);
      assertEquals(
        assertThrows(() => find(`${scratch.path}/none`), LoopError).code,
        "ENOENT",
      );
      // The name moves to another file, and the original file keeps another name only.
      Deno.removeSync(path);
      assertEquals(paths(`${scratch.path}/hard`), both);
      scratch.image();
      assertEquals(paths(path), []);
      await a.detach();
      await b.detach();
    }),
  );

  it(
    "does not confuse the file with another one of the same name",
    withScratch(async (scratch) => {
      const directory = `${scratch.path}/m`;
      Deno.mkdirSync(directory);
      const path = scratch.image(MiB, "m/disk.img");
      await using a = await attach(path);
      runOk("mount", "-t", "tmpfs", "tmpfs", directory);
      try {
        scratch.image(MiB, "m/disk.img");
        assertEquals(find(path), []);
      } finally {
        runOk("umount", directory);
      }
      assertEquals(find(path).map(({ path }) => path), [a.path]);
      await a.detach();
    }),
  );

  it(
    "finds offsets that are not safe integers",
    withScratch(async (scratch) => {
      const directory = `${scratch.path}/tmpfs`;
      Deno.mkdirSync(directory);
      using mount = mounted("-t", "tmpfs", "none", directory);
      const path = `${directory}/huge.img`;
      runOk("truncate", "--size", `${2n ** 54n}`, path);
      const offset = 2n ** 53n + 4097n;
      await using a = await attach(path, { offset });
      assertEquals(find(path, { offset }).map(({ path }) => path), [a.path]);
      assertEquals(find(path, { offset: Number.MAX_SAFE_INTEGER }), []);
      await a.detach();
      mount[Symbol.dispose]();
    }),
  );

  it(
    "finds through a bind mount, and a device by any of its nodes",
    withScratch(async (scratch) => {
      const path = scratch.image();
      const there = `${scratch.path}/there.img`;
      Deno.createSync(there).close();
      runOk("mount", "--bind", path, there);
      try {
        await using a = await attach(path);
        assertEquals(find(there).map(({ path }) => path), [a.path]);
        await using b = await attach(a.path);
        runOk("cp", "-a", a.path, `${scratch.path}/node`);
        assertEquals(
          find(`${scratch.path}/node`).map(({ path }) => path),
          [b.path],
        );
        await b.detach();
        await a.detach();
      } finally {
        runOk("umount", there);
      }
    }),
  );
});
