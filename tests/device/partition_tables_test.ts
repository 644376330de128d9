import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { ByteSource } from "../../lib/partitions/byte_source.ts";
import { DamagedTable } from "../../lib/partitions/table_entry.ts";
import { probeSectorSize, readTable } from "../../lib/partitions/table.ts";
import { onAnyKernel, run, runOk } from "./support.ts";

// These tests use files only and attach nothing.

const MiB = 1 << 20;
const TOOLS = ["sfdisk", "fdisk", "parted", "partx", "mkfs.ext4", "mkfs.vfat"];
const missing = TOOLS.filter((tool) =>
  run("sh", "-c", `command -v ${tool}`).code !== 0
);
const withTools = { ignore: missing.length > 0 };
if (missing.length > 0) console.log(`Skipped: there is no ${missing[0]}`);

/** An image file of a test, and its content. */
class Image implements Disposable {
  readonly path: string = Deno.makeTempFileSync({
    prefix: "loopdev-test-",
    suffix: ".img", // after a digit, sfdisk would insert a "p" before the number
  });

  constructor(size = 64 * MiB) {
    Deno.truncateSync(this.path, size);
  }

  /** Creates a table from a script for sfdisk. */
  sfdisk(...lines: string[]): this {
    return this.script(lines, "sfdisk", "--quiet", "--wipe", "never");
  }

  /** Runs a tool that reads from its standard input. */
  script(lines: string[], command: string, ...args: string[]): this {
    runOk(
      "sh",
      "-c",
      'printf "%s\\n" "$0" | "$@"',
      lines.join("\n"),
      command,
      ...args,
      this.path,
    );
    return this;
  }

  parted(sectorSize: number, ...args: string[]): this {
    const command = ["parted", "--script", this.path, ...args];
    runOk("env", `PARTED_SECTOR_SIZE=${sectorSize}`, ...command);
    return this;
  }

  write(offset: number, bytes: number[]): this {
    using file = Deno.openSync(this.path, { write: true });
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(new Uint8Array(bytes));
    return this;
  }

  resize(size: number): this {
    Deno.truncateSync(this.path, size);
    return this;
  }

  source(): ByteSource {
    const { path } = this;
    return {
      size: Deno.statSync(path).size,
      read(offset, length): Uint8Array {
        using file = Deno.openSync(path);
        file.seekSync(offset, Deno.SeekMode.Start);
        const bytes = new Uint8Array(length);
        return bytes.subarray(0, file.readSync(bytes) ?? 0);
      },
    };
  }

  damage(): string {
    return assertThrows(() => readTable(this.source()), DamagedTable).message;
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path);
  }
}

/**
 * A partition as far as both the library and a tool describe it, in sectors of the
 * tool.
 */
interface Row {
  number: number;
  start: number;
  size: number;
  type: string;
  name?: string;
  uuid?: string;
}

/** Returns sfdisk's description of an image in our terms. */
function sfdiskRows(image: Image): { kind: string; rows: Row[] } {
  const { partitiontable } = JSON.parse(runOk("sfdisk", "--json", image.path));
  const { label, sectorsize, partitions = [] } = partitiontable;
  const rows = partitions.map((
    partition: Record<string, string> & { start: number; size: number },
  ): Row => ({
    number: Number(partition.node!.slice(image.path.length)),
    start: partition.start * sectorsize,
    size: partition.size * sectorsize,
    type: label === "dos" ? `0x${partition.type}` : partition.type!,
    ...(partition.name !== undefined && { name: partition.name }),
    ...(partition.uuid !== undefined && { uuid: partition.uuid }),
  }));
  return { kind: label === "dos" ? "mbr" : label, rows };
}

/**
 * Returns partx's description of an image in our terms. Its sectors are 512 bytes,
 * whatever the table is for.
 */
function partxRows(image: Image, sectorSize: number): Row[] {
  const output = runOk(
    "partx",
    "--pairs",
    "--sector-size",
    String(sectorSize),
    "--output",
    "NR,START,SECTORS,TYPE,NAME,UUID",
    image.path,
  );
  return output.split("\n").filter((line) => line !== "").map((line): Row => {
    const values = [...line.matchAll(/="([^"]*)"/g)].map(([, value]) => value!);
    const [number, start, size, type, name, uuid] = values;
    return {
      number: Number(number),
      start: Number(start) * 512,
      size: Number(size) * 512,
      type: type!,
      ...(name !== "" && { name: name! }),
      ...(uuid !== "" && { uuid: uuid! }),
    };
  });
}

/** Compares with partx, which writes GUIDs in lowercase. */
function assertEqualsPartx(image: Image, sectorSize: number): number {
  const table = readTable(image.source());
  assert(table !== undefined, "there is no table");
  assertEquals(table.sectorSize, sectorSize);
  const ours = table.partitions.map((partition): Row => {
    const { isContainer: _, ...row } = partition;
    row.type = row.type.toLowerCase();
    if (row.uuid !== undefined) row.uuid = row.uuid.toLowerCase();
    return row;
  });
  assertEquals(ours, partxRows(image, sectorSize));
  return ours.length;
}

/** Compares with sfdisk and partx. Returns the number of partitions. */
function assertEqualsTools(image: Image): number {
  const table = readTable(image.source());
  assert(table !== undefined, "there is no table");
  const ours = table.partitions.map((partition): Row => {
    const { isContainer: _, ...row } = partition;
    if (table.kind === "mbr") delete row.uuid; // sfdisk does not report it
    return row;
  });
  assertEquals({ kind: table.kind as string, rows: ours }, sfdiskRows(image));
  return assertEqualsPartx(image, 512);
}

const TWO = [
  "label: gpt",
  // A fixed one, because tests damage its second byte.
  "label-id: 01234567-89ab-4def-8123-456789abcdef",
  'size=2MiB, name="böot 🐧", type=U',
  "size=4MiB",
];
const LOGICAL = [
  "label: dos",
  "label-id: 0x1234abcd",
  "start=2048, size=2048, type=83, bootable",
  "start=4096, size=100000, type=5",
  "start=6144, size=4096, type=83",
  "start=12288, size=4096, type=82",
  "start=20480, size=4096, type=c",
];

describe(
  ...onAnyKernel("readTable() equals sfdisk and partx", withTools),
  () => {
    it("reads a GPT by sfdisk", () => {
      using image = new Image().sfdisk(...TWO);
      assertEquals(assertEqualsTools(image), 2);
      assertEquals(probeSectorSize(image.source()), 512);
    });

    it("reads a GPT by parted", () => {
      using image = new Image().parted(512, "mklabel", "gpt")
        .parted(512, "mkpart", "one", "ext4", "1MiB", "2MiB")
        .parted(512, "mkpart", "two", "ext4", "2MiB", "100%");
      assertEquals(assertEqualsTools(image), 2);
    });

    it("reads a GPT without partitions", () => {
      using image = new Image().sfdisk("label: gpt");
      assertEquals(assertEqualsTools(image), 0);
    });

    it("reads GPTs of 1, 4, 128, 200 and 256 entries", () => {
      for (const length of [1, 4, 128, 200, 256]) {
        using image = new Image().sfdisk(
          "label: gpt",
          `table-length: ${length}`,
          ...Array(Math.min(length, 255)).fill("size=8"),
        );
        assertEquals(assertEqualsTools(image), Math.min(length, 255));
      }
    });

    it("reads a GPT whose partitions are not in disk order", () => {
      using image = new Image().sfdisk(
        "label: gpt",
        "start=20480, size=2048",
        "start=2048, size=2048",
      );
      assertEquals(assertEqualsTools(image), 2);
    });

    it("reads a GPT with a hybrid MBR", () => {
      using image = new Image().sfdisk(...TWO);
      const slot = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0];
      image.write(446 + 16, slot);
      assertEquals(assertEqualsTools(image), 2);
    });

    it("reads a GPT whose primary header or entries are damaged", () => {
      for (const offset of [512, 512 + 57, 1024 + 60]) {
        using image = new Image().sfdisk(...TWO).write(offset, [0xff]);
        assertEquals(assertEqualsTools(image), 2);
      }
    });

    it("reads a GPT whose backup is damaged or missing", () => {
      using image = new Image().sfdisk(...TWO).write(64 * MiB - 512, [0]);
      assertEquals(assertEqualsTools(image), 2);
      image.resize(96 * MiB);
      assertEquals(assertEqualsTools(image), 2);
    });

    it("reads an MBR with logical partitions by sfdisk", () => {
      using image = new Image().sfdisk(...LOGICAL);
      assertEquals(assertEqualsTools(image), 5);
      assertEquals(
        readTable(image.source())?.partitions.map((entry) =>
          entry.isContainer ?? false
        ),
        [false, true, false, false, false],
      );
    });

    it("reads an MBR with logical partitions by parted", () => {
      using image = new Image().parted(512, "mklabel", "msdos")
        .parted(512, "mkpart", "primary", "1MiB", "2MiB")
        .parted(512, "mkpart", "extended", "2MiB", "60MiB")
        .parted(512, "mkpart", "logical", "3MiB", "5MiB")
        .parted(512, "mkpart", "logical", "6MiB", "7MiB")
        .parted(512, "mkpart", "logical", "9MiB", "10MiB");
      assertEquals(assertEqualsTools(image), 5);
      image.parted(512, "rm", "6");
      assertEquals(assertEqualsTools(image), 4);
    });

    it("reads an MBR whose logical partitions are not in disk order", () => {
      using image = new Image().sfdisk(
        "label: dos",
        "start=4096, size=100000, type=f",
        "start=40960, size=4096",
        "start=6144, size=4096",
        "start=20480, size=4096",
      );
      assertEquals(assertEqualsTools(image), 4);
      runOk("sfdisk", "--quiet", "--delete", image.path, "5");
      assertEquals(assertEqualsTools(image), 3);
    });

    it("reads an extended partition without logical ones", () => {
      using image = new Image().sfdisk(
        "label: dos",
        "start=4096, size=8192, type=5",
      );
      assertEquals(assertEqualsTools(image), 1);
    });

    it("reads an MBR without an ID, and one without partitions", () => {
      using image = new Image().sfdisk(
        "label: dos",
        "label-id: 0x0",
        "size=2048",
      );
      assertEquals(assertEqualsTools(image), 1);
      using empty = new Image().sfdisk("label: dos", "label-id: 0x1");
      assertEquals(readTable(empty.source())?.partitions, []);
      assertEquals(sfdiskRows(empty), { kind: "mbr", rows: [] });
    });

    it("reads an MBR in the first sector of a FAT file system", () => {
      using image = new Image();
      runOk("mkfs.vfat", image.path);
      image.sfdisk("label: dos", "start=2048, size=2048");
      const { kind, rows } = sfdiskRows(image);
      assertEquals(kind, "mbr");
      assertEquals(
        readTable(image.source())?.partitions.map(({ start }) => start),
        rows.map(({ start }) => start),
      );
    });
  },
);

describe(
  ...onAnyKernel(
    "readTable() equals partx for sectors of 4096 bytes",
    withTools,
  ),
  () => {
    it("reads a GPT by parted", () => {
      using image = new Image().parted(4096, "mklabel", "gpt")
        .parted(4096, "mkpart", "one", "ext4", "1MiB", "2MiB")
        .parted(4096, "mkpart", "two", "ext4", "2MiB", "100%");
      assertEquals(assertEqualsPartx(image, 4096), 2);
      assertEquals(probeSectorSize(image.source()), 4096);
    });

    it("reads a GPT by fdisk, even if its primary header is damaged", () => {
      const commands = ["g", "n", "", "", "+1M", "n", "", "", "+2M", "w"];
      for (const sectorSize of [1024, 2048, 4096]) {
        using image = new Image()
          .script(commands, "fdisk", "--sector-size", String(sectorSize));
        assertEquals(assertEqualsPartx(image, sectorSize), 2);
        const expected = readTable(image.source());
        image.write(sectorSize, [0]);
        assertEquals(readTable(image.source()), expected);
        assertEquals(probeSectorSize(image.source()), sectorSize);
      }
    });

    it("reads an MBR by fdisk", () => {
      const commands = ["o", "n", "p", "", "", "+1M", "n", "e", "", "", ""];
      commands.push("n", "l", "", "+1M", "n", "l", "", "+2M", "w");
      using image = new Image()
        .script(commands, "fdisk", "--sector-size", "4096");
      const table = readTable(image.source(), { sectorSize: 4096 });
      assertEquals(
        table?.partitions.map((
          { number, start, size },
        ) => [number, start, size]),
        partxRows(image, 4096).map(({ number, start, size }) => [
          number,
          start,
          size,
        ]),
      );
      assertEquals(table?.partitions.length, 4);
    });
  },
);

describe(
  ...onAnyKernel("readTable() of disks without a table", withTools),
  () => {
    it("returns undefined for ext4, FAT and a file of zeros", () => {
      const commands = [
        ["mkfs.ext4", "-q"],
        ["mkfs.vfat", "-F", "12"],
        ["mkfs.vfat", "-F", "16"],
        ["mkfs.vfat", "-F", "32"],
        ["mkfs.vfat", "-F", "32", "-S", "4096"],
        ["mkfs.vfat", "--mbr=yes"],
        ["true"],
      ];
      for (const [command, ...args] of commands) {
        using image = new Image();
        runOk(command!, ...args, image.path);
        assertEquals(readTable(image.source()), undefined, command);
        assertEquals(probeSectorSize(image.source()), undefined, command);
      }
    });
  },
);

describe(
  ...onAnyKernel(
    "readTable() of disks that sfdisk cannot read either",
    withTools,
  ),
  () => {
    it("reports that both headers of a GPT are damaged", () => {
      using image = new Image().sfdisk(...TWO)
        .write(512, [0]).write(64 * MiB - 512 + 57, [0xff]);
      assertEquals(sfdiskRows(image).kind, "mbr"); // the protective MBR
      assertEquals(
        image.damage(),
        "the primary GPT header at byte 512 has no signature, and the backup header at byte 67108352 does not match its checksum",
      );
    });

    it("refuses a truncated disk", () => {
      using image = new Image().sfdisk(...TWO);
      for (const size of [5, 32]) {
        image.resize(size * MiB);
        assertEquals(sfdiskRows(image).kind, "mbr");
        assert(image.damage().startsWith("the GPT is for a larger disk"));
      }
    });

    it("refuses a protective MBR alone", () => {
      using image = new Image()
        .sfdisk("label: dos", "start=1, size=131071, type=ee");
      assert(image.damage().includes("announces a GPT"));
    });
  },
);
