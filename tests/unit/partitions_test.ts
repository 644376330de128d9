import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { crc32 } from "../../lib/partitions/gpt.ts";
import {
  probeSectorSize,
  readTable,
  type TableOptions,
} from "../../lib/partitions/table.ts";
import {
  DamagedTable,
  type TableEntry,
} from "../../lib/partitions/table_entry.ts";
import {
  changeHeaders,
  EFI_SYSTEM,
  gptImage,
  gptLayout,
  type GptPartition,
  type GptParts,
  headerOf,
  LINUX,
  logicalParts,
  mbrImage,
  type MbrParts,
  memory,
  seal,
  uuidOf,
  viewOf,
  writeBootRecord,
  writeFatBootSector,
} from "./partition_images.ts";

const encoder = new TextEncoder();

function read(
  image: Uint8Array,
  options?: TableOptions,
): ReturnType<typeof readTable> {
  return readTable(memory(image), options);
}

function partitionsOf(image: Uint8Array): TableEntry[] {
  const table = read(image);
  assert(table !== undefined, "there is no table");
  return table.partitions;
}

/** Returns the damage of a disk. */
function damage(image: Uint8Array, options?: TableOptions): string {
  return assertThrows(() => read(image, options), DamagedTable).message;
}

const TWO: GptPartition[] = [
  { first: 64, last: 127, name: "böot 🐧", type: EFI_SYSTEM },
  { first: 128, last: 200 },
];

/** Returns the entries of `TWO` for a sector size. */
function two(sectorSize: number): TableEntry[] {
  return [
    {
      number: 1,
      start: 64 * sectorSize,
      size: 64 * sectorSize,
      type: EFI_SYSTEM,
      name: "böot 🐧",
      uuid: uuidOf(1),
    },
    {
      number: 2,
      start: 128 * sectorSize,
      size: 73 * sectorSize,
      type: LINUX,
      uuid: uuidOf(2),
    },
  ];
}

describe("crc32()", () => {
  it("returns the standard check value", () => {
    assertEquals(crc32(encoder.encode("123456789")), 0xcbf43926);
    assertEquals(crc32(new Uint8Array()), 0);
  });

  it("accepts any number of bytes at any offset", () => {
    // The checksum of bytes followed by their own checksum is constant.
    const noise = Uint8Array.from({ length: 64 }, (_, at) => at * 167 + 13);
    for (let length = 0; length <= 20; length++) {
      for (let from = 0; from < 4; from++) {
        const bytes = noise.slice(from, from + length + 4);
        const view = new DataView(bytes.buffer);
        view.setUint32(
          length,
          crc32(noise.subarray(from, from + length)),
          true,
        );
        assertEquals(crc32(bytes), 0x2144df1c, `${length} from ${from}`);
      }
    }
  });
});

describe("readTable() of hostile headers", () => {
  it("reads up to 8 MiB of entries in each pass", () => {
    const image = new Uint8Array(12 << 20);
    image.set(mbrImage({ slots: [{ start: 1, count: 100, type: 0xee }] }));
    const first = gptImage({ partitions: TWO }).slice(512, 1024);
    for (const sectorSize of [512, 1024, 2048, 4096]) {
      const last = image.length / sectorSize - 1;
      for (const sector of [1, last]) {
        image.set(first, sector * sectorSize);
        const header = headerOf(image, sectorSize, sector);
        header.setBigUint64(24, BigInt(sector), true);
        header.setBigUint64(72, BigInt((4 << 20) / sectorSize), true);
        header.setUint32(80, 32768, true);
        seal(image, sectorSize, sector);
        header.setUint32(88, 0, true); // the checksum of the entries
        header.setUint32(16, 0, true);
        const at = sector * sectorSize;
        header.setUint32(16, crc32(image.subarray(at, at + 92)), true);
      }
    }
    let bytes = 0;
    const source = {
      size: image.length,
      read(offset: number, length: number): Uint8Array {
        bytes += length;
        return image.slice(offset, offset + length);
      },
    };
    const error = assertThrows(() => readTable(source), DamagedTable);
    assertStringIncludes(error.message, "do not match their checksum");
    assertStringIncludes(
      error.message,
      "exceeds the limit for the size of all tables",
    );
    // A second pass determines the sector size.
    assert(bytes < (17 << 20), `${bytes} bytes were read`);
  });
});

describe("readTable() of disks without a table", () => {
  it("returns undefined for nothing, too little, zeros and noise", () => {
    for (const size of [0, 1, 511, 512, 4096, 1 << 20]) {
      assertEquals(read(new Uint8Array(size)), undefined);
      assertEquals(read(new Uint8Array(size).fill(0xa5)), undefined);
    }
  });

  it("returns undefined for a GPT without a protective MBR", () => {
    const image = gptImage({ partitions: TWO });
    image.fill(0, 0, 512);
    assertEquals(read(image), undefined);
    assertEquals(probeSectorSize(memory(image)), undefined);
  });

  it("returns undefined for FAT, NTFS, exFAT and BitLocker", () => {
    const fat = new Uint8Array(1 << 20);
    writeFatBootSector(fat);
    assertEquals(read(fat), undefined);
    for (const name of ["NTFS    ", "EXFAT   ", "-FVE-FS-"]) {
      const image = mbrImage();
      image.set(encoder.encode(name), 3);
      assertEquals(read(image), undefined, name);
    }
  });

  it("returns undefined for a dynamic disk of Windows, but reads type 0x42 without its database", () => {
    const image = mbrImage({ slots: [{ start: 63, count: 100, type: 0x42 }] });
    assertEquals(partitionsOf(image).map(({ type }) => type), ["0x42"]);
    image.set(encoder.encode("PRIVHEAD"), 6 * 512);
    assertEquals(read(image), undefined);
  });

  it("returns undefined for FAT whose slots are boot code or the disk itself", () => {
    const slots = [
      { start: 0, count: 2048, type: 0x0c, bootFlag: 0x80 },
      { start: 0x6f6f6f6f, count: 0x6f6f6f6f },
      { start: 64, count: 64, bootFlag: 0x6f },
    ];
    for (const slot of slots) {
      const image = mbrImage({ slots: [slot] });
      writeFatBootSector(image);
      assertEquals(read(image), undefined);
    }
  });

  it("returns undefined for boot code in place of the boot flags", () => {
    for (const bootFlag of [1, 0x7f, 0x81, 0xff]) {
      const slots = [undefined, { start: 64, count: 64, bootFlag }];
      assertEquals(read(mbrImage({ slots })), undefined);
    }
  });
});

describe("readTable() of a GPT", () => {
  for (const sectorSize of [512, 1024, 2048, 4096]) {
    it(`reads a table for sectors of ${sectorSize} bytes`, () => {
      const image = gptImage({ sectorSize, size: 1 << 20, partitions: TWO });
      const expected = {
        kind: "gpt" as const,
        sectorSize,
        partitions: two(sectorSize),
        unusable: [],
      };
      assertEquals(read(image), expected);
      assertEquals(read(image, { sectorSize }), expected);
      assertEquals(probeSectorSize(memory(image)), sectorSize);
    });
  }

  it("names the sector size if it is not that of the disk", () => {
    const image = gptImage({ sectorSize: 4096, partitions: TWO });
    assertEquals(
      damage(image, { sectorSize: 512 }),
      "the GPT is for sectors of 4096 bytes, but those of the disk have 512; blockSize: 4096 (-b 4096) attaches it for them",
    );
  });

  it("reads a table without partitions", () => {
    assertEquals(partitionsOf(gptImage()), []);
  });

  it("reads 4, 128, 256 and 1000 entries, of 128, 256 and 4096 bytes", () => {
    for (const entryCount of [4, 128, 256, 1000]) {
      for (const entrySize of [128, 256, 4096]) {
        const parts: GptParts = { size: 16 << 20, entryCount, entrySize };
        const first = gptLayout(parts).firstUsable;
        const number = Math.min(entryCount, 255);
        parts.partitions = [{ number, first, last: first }];
        assertEquals(partitionsOf(gptImage(parts)), [{
          number,
          start: first * 512,
          size: 512,
          type: LINUX,
          uuid: uuidOf(number),
        }]);
      }
    }
  });

  it("reads 255 partitions, and leaves out a partition 256 as the kernel does", () => {
    const parts: GptParts = { entryCount: 256 };
    const first = gptLayout(parts).firstUsable;
    const partitions = Array.from({ length: 256 }, (_, index) => ({
      first: first + index,
      last: first + index,
    }));
    const image = gptImage({ ...parts, partitions: partitions.slice(0, 255) });
    assertEquals(
      partitionsOf(image).map(({ number }) => number),
      Array.from({ length: 255 }, (_, index) => index + 1),
    );
    const table = read(gptImage({ ...parts, partitions }));
    assertEquals(table?.partitions.length, 255);
    assertStringIncludes(table!.unusable.join(), "partition 256");
  });

  it("keeps the numbers of entries between empty ones", () => {
    const partitions = [
      { number: 7, first: 300, last: 300 },
      { number: 3, first: 400, last: 400 },
    ];
    assertEquals(
      partitionsOf(gptImage({ partitions })).map(({ number, start }) => [
        number,
        start / 512,
      ]),
      [[3, 400], [7, 300]],
    );
  });

  it("reads names up to NUL, and unpaired surrogates as U+FFFD", () => {
    const names: [string | number[], string | undefined][] = [
      ["x".repeat(36), "x".repeat(36)],
      ["ab\0cd", "ab"],
      ["\0cd", undefined],
      ["\ufeffa", "\ufeffa"],
      [[0x61, 0xd83d, 0x62], "a\ufffdb"],
      [[0xdc27, 0x61], "\ufffda"],
      [[...Array(35).fill(0x61), 0xd83d], "a".repeat(35) + "\ufffd"],
      ["\n\x1b\x7f", "\n\x1b\x7f"],
    ];
    for (const [name, expected] of names) {
      const image = gptImage({ partitions: [{ first: 64, last: 64, name }] });
      assertEquals(partitionsOf(image)[0]!.name, expected);
    }
  });

  it("ignores the other slots of a hybrid MBR", () => {
    const image = gptImage({ partitions: TWO });
    writeBootRecord(image, 0, [
      { start: 64, count: 64, bootFlag: 0x80 },
      { type: 0xee, start: 1, count: 63 },
      { start: 0x70000000, count: 64, bootFlag: 0x33 },
    ]);
    assertEquals(partitionsOf(image), two(512));
  });

  it("reads a disk that grew, or ends within a sector", () => {
    for (const more of [1, 511, 512, 100000]) {
      const image = gptImage({ partitions: TWO });
      const grown = new Uint8Array(image.length + more);
      grown.set(image);
      assertEquals(partitionsOf(grown), two(512));
    }
  });
});

describe("readTable() of a GPT with a damaged copy", () => {
  const faults: [string, (image: Uint8Array, header: DataView) => void][] = [
    ["no signature", (_, header) => header.setUint8(0, 0)],
    ["does not match its checksum", (_, header) => header.setUint8(57, 1)],
    [
      "entries that do not match their checksum",
      (image, header) => {
        image[Number(header.getBigUint64(72, true)) * 512 + 60]! ^= 1;
      },
    ],
  ];
  for (const [fault, spoil] of faults) {
    it(`uses the other copy: ${fault}`, () => {
      for (const sector of [1, 2047]) {
        const image = gptImage({ partitions: TWO });
        spoil(image, headerOf(image, 512, sector));
        assertEquals(partitionsOf(image), two(512));
        assertEquals(probeSectorSize(memory(image)), 512);
      }
    });

    it(`reports the faults of both copies: ${fault}`, () => {
      const image = gptImage({ partitions: TWO });
      const header = headerOf(image, 512, 1);
      spoil(image, header);
      if (fault === "no signature") header.setUint8(57, 1);
      const backup = headerOf(image, 512, 2047);
      backup.setUint32(16, 7, true);
      const message = damage(image);
      assertStringIncludes(message, `at byte 512 `);
      assertStringIncludes(message, fault);
      assertStringIncludes(
        message,
        "backup header at byte 1048064 does not match its checksum",
      );
      assertEquals(probeSectorSize(memory(image)), undefined);
    });
  }

  const sane: [string, (header: DataView) => void][] = [
    ["claims a size of 91 bytes", (header) => header.setUint32(12, 91, true)],
    ["claims a size of 513 bytes", (header) => header.setUint32(12, 513, true)],
    ["sector 5", (header) => header.setBigUint64(24, 5n, true)],
    ["2015 to 2014", (header) => header.setBigUint64(40, 2015n, true)],
    ["claims 0 bytes for an entry", (header) => header.setUint32(84, 0, true)],
    [
      "claims 64 bytes for an entry",
      (header) => header.setUint32(84, 64, true),
    ],
    [
      "claims 384 bytes for an entry",
      (header) => header.setUint32(84, 384, true),
    ],
    ["claims 0 entries", (header) => header.setUint32(80, 0, true)],
    ["claims 32769 entries", (header) => header.setUint32(80, 32769, true)],
    [
      "claims 4294967295 entries of 2147483648 bytes",
      (header) => {
        header.setUint32(80, 0xffffffff, true);
        header.setUint32(84, 0x80000000, true);
      },
    ],
    ["outside the disk", (header) => header.setBigUint64(72, 2040n, true)],
    [
      "outside the disk",
      (header) => header.setBigUint64(72, 2n ** 64n - 1n, true),
    ],
  ];
  for (const [fault, change] of sane) {
    it(`refuses a header with a correct checksum: ${fault}`, () => {
      const image = gptImage({ partitions: TWO });
      changeHeaders(image, 512, change);
      assertStringIncludes(damage(image), fault);
      // One valid copy is enough.
      const half = gptImage({ partitions: TWO });
      change(headerOf(half, 512, 1));
      seal(half, 512, 1);
      assertEquals(partitionsOf(half), two(512));
    });
  }

  it("accepts any revision and usable sectors from 0 on, as the kernel does", () => {
    const changes: ((header: DataView) => void)[] = [
      (header) => header.setUint32(8, 0x20000, true),
      (header) => header.setUint32(8, 0, true),
      (header) => header.setBigUint64(40, 0n, true),
      (header) => header.setBigUint64(40, 1n, true),
    ];
    for (const change of changes) {
      const image = gptImage({ partitions: TWO });
      changeHeaders(image, 512, change);
      assertEquals(partitionsOf(image), two(512));
      assertEquals(probeSectorSize(memory(image)), 512);
    }
  });

  it("finds the backup where a damaged primary points, on a disk that grew", () => {
    const image = new Uint8Array(2 << 20);
    image.set(gptImage({ partitions: TWO }));
    headerOf(image, 512, 1).setUint8(57, 1);
    assertEquals(partitionsOf(image), two(512));
    headerOf(image, 512, 1).setUint8(0, 0);
    assertStringIncludes(damage(image), "announces a GPT");
  });

  it("refuses a protective MBR alone", () => {
    for (const size of [512, 1024, 4096, 1 << 20]) {
      const slots = [{ type: 0xee, start: 1, count: 0xffffffff }];
      const message = damage(mbrImage({ size, slots }));
      assertStringIncludes(message, "announces a GPT");
    }
  });

  it("refuses tables for two sector sizes unless one is given", () => {
    const image = gptImage({ partitions: TWO, entryCount: 4 });
    const other = gptImage({ sectorSize: 4096, partitions: TWO });
    image.set(other.subarray(4096, 8 * 4096), 4096);
    assertStringIncludes(damage(image), "512 and 4096");
    assertEquals(probeSectorSize(memory(image)), undefined);
    assertEquals(
      read(image, { sectorSize: 4096 })?.partitions,
      two(4096),
    );
    assertEquals(read(image, { sectorSize: 512 })?.partitions, two(512));
  });

  it("prefers a primary to the backup of an earlier table", () => {
    const earlier = gptImage({ sectorSize: 4096 });
    const image = new Uint8Array((1 << 20) + 4096);
    image.set(earlier.subarray(-4096), 1 << 20);
    image.set(gptImage({ partitions: TWO }));
    assertEquals(partitionsOf(image), two(512));
  });
});

describe("readTable() of a GPT with odd entries", () => {
  const { firstUsable, lastUsable } = gptLayout();
  const good = { number: 9, first: 1000, last: 1009 };

  const unusable: [string, GptPartition][] = [
    ["partition 1 (sectors 40 to 2048) lies outside the disk", {
      first: 40,
      last: 2048,
    }],
    ["partition 1 (sectors 5000 to 6000) lies outside the disk", {
      first: 5000,
      last: 6000,
    }],
    ["partition 1 (sectors 41 to 40) ends before it begins", {
      first: 41,
      last: 40,
    }],
    ["partition 1 (sectors 2000 to 40) ends before it begins", {
      first: 2000,
      last: 40,
    }],
  ];
  for (const [message, partition] of unusable) {
    it(`shows the other entries: ${message}`, () => {
      const table = read(gptImage({ partitions: [partition, good] }));
      assertEquals(table?.partitions.map(({ number }) => number), [9]);
      assertEquals(table?.partitions[0]?.problem, undefined);
      assertStringIncludes(table!.unusable.join(), message);
      assertStringIncludes(
        damage(gptImage({ partitions: [partition] })),
        message,
      );
    });
  }

  it("names five of many unusable entries", () => {
    const partitions = Array.from(
      { length: 20 },
      () => ({ first: 3000, last: 3000 }),
    );
    assertStringIncludes(
      damage(gptImage({ partitions })),
      "partition 5 (sector 3000) lies outside the disk, which has 2048 sectors of 512 bytes; and 15 more",
    );
  });

  it("shows entries outside the usable sectors, with a problem", () => {
    for (
      const [first, last] of [
        [firstUsable - 1, 40],
        [40, lastUsable + 1],
        [0, 2047],
      ]
    ) {
      const partitions = [{ first: first!, last: last! }];
      assertEquals(
        partitionsOf(gptImage({ partitions })).map(({ start, problem }) => [
          start,
          problem,
        ]),
        [[first! * 512, "lies outside the usable sectors, 34 to 2014"]],
      );
    }
  });

  it("shows both of two overlapping entries, with a problem", () => {
    const partitions = [
      { first: 60, last: 70 },
      { first: 50, last: 60 },
      { first: 71, last: 80 },
      { first: 60, last: 60 },
    ];
    assertEquals(
      partitionsOf(gptImage({ partitions })).map(({ problem }) => problem),
      [
        "overlaps partition 2 and 1 more",
        "overlaps partition 1 and 1 more",
        undefined,
        "overlaps partition 1 and 1 more",
      ],
    );
  });

  it("reads sectors exactly that are not safe integers", () => {
    const image = gptImage({ partitions: TWO });
    for (const sector of [2, 2047 - 32]) {
      viewOf(image, sector * 512).setBigUint64(40, 2n ** 64n - 1n, true);
    }
    seal(image, 512, 1);
    assertStringIncludes(
      read(image)!.unusable.join(),
      "64 to 18446744073709551615",
    );
  });

  it("refuses a truncated disk, as the kernel does, unless only the backup is cut off", () => {
    const image = gptImage({ partitions: TWO });
    assertEquals(partitionsOf(image.slice(0, 2015 * 512)), two(512));
    for (const sectors of [150, 1024, 2014]) {
      const message = damage(image.slice(0, sectors * 512));
      assertStringIncludes(message, "the GPT is for a larger disk");
      assertStringIncludes(message, "2014");
    }
  });
});

describe("readTable() of an MBR", () => {
  it("reads primary and logical partitions", () => {
    for (const sectorSize of [512, 4096]) {
      const parts: MbrParts = {
        ...logicalParts(),
        size: 8 << 20,
        sectorSize,
      };
      const rows: [number, number, number, string, true?][] = [
        [1, 64, 64, "0x83"],
        [2, 128, 64, "0xc"],
        [3, 256, 1024, "0x5", true],
        [5, 264, 100, "0x83"],
        [6, 520, 200, "0x82"],
        [7, 769, 255, "0xc"],
      ];
      assertEquals(read(mbrImage(parts), { sectorSize }), {
        kind: "mbr",
        sectorSize,
        partitions: rows.map(([number, start, count, type, isContainer]) => ({
          number,
          start: start * sectorSize,
          size: count * sectorSize,
          type,
          uuid: `1234abcd-0${number}`,
          ...(isContainer && { isContainer }),
        })),
        unusable: [],
      });
      assertEquals(probeSectorSize(memory(mbrImage(parts))), undefined);
    }
  });

  it("reads a table without partitions", () => {
    assertEquals(read(mbrImage()), {
      kind: "mbr",
      sectorSize: 512,
      partitions: [],
      unusable: [],
    });
  });

  it("has no uuids on a disk without an ID", () => {
    const slots = [{ start: 64, count: 64 }];
    assertEquals(partitionsOf(mbrImage({ diskId: 0, slots })), [
      { number: 1, start: 32768, size: 32768, type: "0x83" },
    ]);
  });

  it("skips slots of size 0, and keeps the numbers", () => {
    const slots = [{ start: 64, count: 0 }, { start: 128, count: 64 }];
    assertEquals(
      partitionsOf(mbrImage({ slots })).map(({ number }) => number),
      [2],
    );
  });

  it("shows slots of type 0 that have sectors, as hybrid ISO images have", () => {
    const slots = [
      { start: 0, count: 100, type: 0, bootFlag: 0x80 },
      { start: 100, count: 100, type: 0xef },
    ];
    assertEquals(
      partitionsOf(mbrImage({ slots }))
        .map(({ start, size, type, problem }) => [start, size, type, problem]),
      [
        [0, 51200, "0x0", undefined],
        [51200, 51200, "0xef", undefined],
      ],
    );
  });

  it("reads a table written over a FAT file system", () => {
    const image = mbrImage({ slots: [{ start: 64, count: 64 }] });
    writeFatBootSector(image);
    assertEquals(partitionsOf(image).length, 1);
  });

  it("reads extended partitions of DOS, Windows and Linux", () => {
    for (const type of [0x05, 0x0f, 0x85]) {
      const parts = logicalParts();
      parts.slots![2]!.type = type;
      for (const { slots } of parts.records!) {
        if (slots[1] !== undefined) slots[1].type = type;
      }
      assertEquals(partitionsOf(mbrImage(parts)).length, 6);
    }
  });

  it("numbers logical partitions in the order of the chain, without gaps", () => {
    const parts = logicalParts();
    const [first, second, third] = parts.records!;
    // 256 → 768 → 512, with the partition of 768 deleted.
    first!.slots[1]!.start = 512;
    third!.slots = [undefined, { start: 256, count: 256, type: 5 }];
    second!.slots.length = 1;
    assertEquals(
      partitionsOf(mbrImage(parts)).slice(3)
        .map(({ number, start }) => [number, start / 512]),
      [[5, 264], [6, 520]],
    );
  });

  it("accepts the slots of an extended boot record in either order", () => {
    const parts = logicalParts();
    parts.records![0]!.slots.reverse();
    parts.records![0]!.slots.push({ start: 7, count: 2000 }); // garbage
    assertEquals(partitionsOf(mbrImage(parts)).length, 6);
    parts.records![0]!.slots.push({ start: 120, count: 20 }); // as OS/2 writes it
    assertEquals(partitionsOf(mbrImage(parts)).length, 7);
  });

  it("shows a logical partition of type 0", () => {
    const parts = logicalParts();
    parts.records![0]!.slots[0]!.type = 0;
    assertEquals(partitionsOf(mbrImage(parts)).length, 6);
  });

  it("reads an extended partition without logical ones", () => {
    const parts = logicalParts();
    parts.records = [{ sector: 256, slots: [] }];
    assertEquals(partitionsOf(mbrImage(parts)).length, 3);
  });

  it("continues the numbers over two extended partitions", () => {
    const image = mbrImage({
      slots: [
        { start: 100, count: 100, type: 5 },
        { start: 200, count: 100, type: 0x0f },
      ],
      records: [
        { sector: 100, slots: [{ start: 1, count: 9 }] },
        { sector: 200, slots: [{ start: 1, count: 9 }] },
      ],
    });
    assertEquals(
      partitionsOf(image).map(({ number, start }) => [number, start / 512]),
      [[1, 100], [2, 200], [5, 101], [6, 201]],
    );
  });

  it("reads as many logical partitions as Linux can show, and no more", () => {
    for (const count of [251, 252]) {
      const records = Array.from({ length: count }, (_, index) => ({
        sector: 256 + 2 * index,
        slots: [
          { start: 1, count: 1 },
          index + 1 < count
            ? { start: 2 * index + 2, count: 2, type: 5 }
            : undefined,
        ],
      }));
      const slots = [{ start: 256, count: 1024, type: 5 }];
      const image = mbrImage({ slots, records });
      const found = partitionsOf(image);
      assertEquals(found.at(-1)?.number, 255);
      if (count === 251) assertEquals(found[0]?.problem, undefined);
      else assertStringIncludes(found[0]!.problem!, "partition 256");
    }
  });
});

describe("readTable() of an odd MBR", () => {
  const ALL = [1, 2, 3, 5, 6, 7];
  const cases: [
    problem: string,
    of: number[],
    left: number[],
    (parts: MbrParts) => void,
  ][] = [
    [
      "cut off at the end of the disk: according to the table it ends in sector 2063",
      [
        2,
      ],
      ALL,
      (parts) => {
        parts.slots![1] = { start: 2000, count: 64 };
      },
    ],
    ["overlaps partition 2", [1], ALL, (parts) => {
      parts.slots![0]!.count = 65;
    }],
    ["overlaps partition 1", [2], ALL, (parts) => {
      parts.slots![0]!.count = 65;
    }],
    ["overlaps partition 3", [2], ALL, (parts) => {
      parts.slots![1]!.count = 129;
    }],
    ["extended boot record (sector 256) occurs twice", [3], ALL, (parts) => {
      parts.records![2]!.slots[1] = { start: 0, count: 1, type: 5 };
    }],
    ["extended boot record (sector 512) occurs twice", [3], [1, 2, 3, 5, 6], (
      parts,
    ) => {
      parts.records![1]!.slots[1]!.start = 256;
    }],
    ["boot record (sector 1280) has no signature", [3], [1, 2, 3, 5, 6], (
      parts,
    ) => {
      parts.records![1]!.slots[1]!.start = 1024;
    }],
    ["boot record (sector 100000) lies outside the disk", [3], [
      1,
      2,
      3,
      5,
      6,
    ], (parts) => {
      parts.records![1]!.slots[1]!.start = 100000 - 256;
    }],
    ["boot record (sector 1300) lies outside it", [3], ALL, (parts) => {
      parts.records![1]!.slots[1]!.start = 1300 - 256;
      parts.records![2]!.sector = 1300;
    }],
    ["(sector 256) has no signature", [3], [1, 2, 3], (parts) => {
      parts.records!.shift();
    }],
    ["(sector 256) has two links", [3], [1, 2, 3, 5, 6], (parts) => {
      parts.records![0]!.slots[0] = { type: 0x05, start: 256, count: 9 };
    }],
    ["partition 7 (sectors 769 to 1280) lies outside it", [3], ALL, (
      parts,
    ) => {
      parts.records![2]!.slots[0]!.count = 512;
    }],
    ["overlaps partition 6", [5], ALL, (parts) => {
      parts.records![0]!.slots[0]!.count = 257;
    }],
    ["overlaps partition 3", [5], ALL, (parts) => {
      parts.records![0]!.slots[0]!.start = 0;
    }],
  ];
  for (const [message, numbers, left, spoil] of cases) {
    it(`reports: ${message}`, () => {
      const parts = logicalParts();
      spoil(parts);
      const found = partitionsOf(mbrImage(parts));
      assertEquals(found.map(({ number }) => number), left);
      for (const number of numbers) {
        const { problem } = found.find((one) => one.number === number)!;
        assertStringIncludes(problem!, message);
      }
    });
  }

  it("shows both partitions of one record", () => {
    const parts = logicalParts();
    parts.records![2]!.slots[1] = { start: 256, count: 10, type: 0x82 };
    assertEquals(
      partitionsOf(mbrImage(parts)).slice(3)
        .map(({ number, start }) => [number, start / 512]),
      [[5, 264], [6, 520], [7, 769], [8, 1024]],
    );
  });

  it("leaves out partitions that start past the end, and keeps the numbers", () => {
    const parts = logicalParts();
    parts.slots![0] = { start: 0xffffffff, count: 0xffffffff };
    parts.records![0]!.slots[0]!.start = 5000;
    const table = read(mbrImage(parts));
    assertEquals(
      table?.partitions.map(({ number }) => number),
      [2, 3, 6, 7],
    );
    assertEquals(table!.unusable, [
      "partition 1 (sectors 4294967295 to 8589934589) lies outside the disk, which has 2048 sectors of 512 bytes",
      "partition 5 (sectors 5256 to 5355) lies outside the disk, which has 2048 sectors of 512 bytes",
    ]);
  });

  it("refuses a table without any partition on the disk", () => {
    const slots = [{ start: 5000, count: 10 }];
    assertStringIncludes(damage(mbrImage({ slots })), "lies outside the disk");
  });

  it("reads at most 256 records of four extended partitions", () => {
    const LENGTH = 90;
    const containers = [0, 1, 2, 3].map((index) => 256 + index * LENGTH);
    const image = mbrImage({
      slots: containers.map((start) => ({ start, count: LENGTH, type: 5 })),
      records: containers.flatMap((start) =>
        Array.from({ length: LENGTH }, (_, index) => ({
          sector: start + index,
          slots: index + 1 < LENGTH
            ? [undefined, { start: index + 1, count: 1, type: 5 }]
            : [],
        }))
      ),
    });
    let reads = 0;
    const whole = memory(image);
    const table = readTable({
      size: whole.size,
      read(offset, length): Uint8Array {
        reads++;
        return whole.read(offset, length);
      },
    });
    assertEquals(reads, 1 + 256);
    const [first, second, ...others] = table!.partitions;
    assertEquals([first!.problem, second!.problem], [undefined, undefined]);
    for (const { problem } of others) {
      assertStringIncludes(problem!, "exceeds the limit");
    }
    assertEquals(others.length, 2);
  });

  it("ends a chain of a hundred empty records", () => {
    for (const count of [100, 101]) {
      const records = Array.from({ length: count }, (_, index) => ({
        sector: 256 + index,
        slots: [
          index + 1 < count ? undefined : { start: 500, count: 1 },
          { start: index + 1, count: 1, type: 5 },
        ],
      }));
      const slots = [{ start: 256, count: 1700, type: 5 }];
      const found = partitionsOf(mbrImage({ slots, records }));
      assertEquals(found.length, count === 100 ? 2 : 1);
      assert(found[0]!.problem !== undefined);
    }
  });
});

describe("readTable() of a source that ends early", () => {
  it("treats unreadable sectors as damaged", () => {
    const image = gptImage({ partitions: TWO });
    const whole = memory(image);
    const source = {
      size: image.length,
      read(offset: number, length: number): Uint8Array {
        const bytes = whole.read(offset, length);
        return length > 512 ? bytes.slice(0, -1) : bytes;
      },
    };
    assertThrows(() => readTable(source), DamagedTable, "outside the disk");
  });

  it("reads disks of every small size", () => {
    const image = gptImage({ partitions: TWO });
    for (let size = 0; size < 20000; size += 128) {
      const cut = image.slice(0, size);
      if (size < 512) assertEquals(read(cut), undefined);
      else assertThrows(() => read(cut), DamagedTable);
      assertEquals(
        probeSectorSize(memory(cut)),
        size < 17408 ? undefined : 512,
      );
    }
  });
});
