import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { unicodeWidth } from "@std/cli/unicode-width";
import { describe, it } from "@std/testing/bdd";
import { drawDisk } from "../../lib/cli/drawing.ts";
import {
  parse,
  parseDevice,
  parseDeviceNumber,
  parseSize,
  parseTimeout,
  UsageError,
} from "../../lib/cli/arguments.ts";
import type { Options } from "../../lib/cli/command.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { helpOf } from "../../lib/cli/help.ts";
import { report } from "../../lib/cli/report.ts";
import { main } from "../../lib/cli/main.ts";
import { escapeControls, LoopError } from "../../lib/errors.ts";
import { formatSize, table } from "../../lib/cli/table.ts";

describe("parseSize()", () => {
  it("parses bytes, binary and decimal units", () => {
    const sizes: [string, bigint][] = [
      ["0", 0n],
      ["512", 512n],
      ["4K", 4096n],
      ["4k", 4096n],
      ["4KiB", 4096n],
      ["4KB", 4000n],
      ["1.5M", 1572864n],
      ["0.5KB", 500n],
      ["2G", 2147483648n],
      ["8E", 2n ** 63n],
      ["9007199254740993", 9007199254740993n],
    ];
    for (const [text, size] of sizes) {
      assertEquals(parseSize(text, "offset"), size, text);
    }
  });

  it("refuses everything else", () => {
    const wrong = [
      "",
      "x",
      "-1",
      "+1",
      "1.5",
      ".5K",
      "1Ki",
      "1B",
      "0x10",
      " 1",
    ];
    for (const text of [...wrong, "1e3", "4 K", "0.3K", "1KiBB"]) {
      assertThrows(() => parseSize(text, "offset"), UsageError, "offset");
    }
  });
});

describe("parse()", () => {
  const options: Options = {
    offset: { letter: "o", value: "SIZE", help: "" },
    "loop-ref": { value: "NAME", help: "" },
    "read-only": { letter: "r", help: "" },
    partscan: { letter: "P", help: "" },
    autoclear: { negatable: true, help: "" },
    "direct-io": { negatable: true, help: "" },
  };

  it("separates options from operands, which stay text", () => {
    const given = parse(
      ["007", "-rP", "-o", "4K", "1e3", "--loop-ref=a=b", "--", "-x", "--y"],
      options,
    );
    assertEquals(given.operands, ["007", "1e3", "-x", "--y"]);
    assertEquals(given.value("offset"), "4K");
    assertEquals(given.value("loop-ref"), "a=b");
    assertEquals(given.flag("read-only"), true);
    assertEquals(given.switched("autoclear"), undefined);
    assertEquals(given.flag("partscan"), true);
    assertEquals(parse([], options).flag("partscan"), false);
    assertEquals(parse([], options).value("offset"), undefined);
  });

  it("refuses unknown options and missing values", () => {
    const wrong = [
      ["--bogus"],
      ["-x"],
      ["--a.b=1"],
      ["--read"],
      ["--bogus=1"],
      ["-r5"],
      ["-rx"],
      ["--no-read-only"],
      ["--_=x"],
      ["--__proto__=x"],
    ];
    for (const args of wrong) {
      assertThrows(() => parse(args, options), UsageError, "unknown option");
    }
    for (const args of [["--read-only=0"], ["--autoclear=no"]]) {
      assertThrows(() => parse(args, options), UsageError, "takes no value");
    }
    for (const args of [["-o"], ["--offset"], ["--offset="], ["-ro"]]) {
      assertThrows(() => parse(args, options), UsageError, "takes a value");
    }
  });

  it("refuses a second value of an option", () => {
    for (const args of [["-o1", "-o2"], ["--offset=1", "-o", "1"]]) {
      assertThrows(() => parse(args, options), UsageError, "given twice");
    }
    assertEquals(parse(["-r", "-r"], options).flag("read-only"), true);
    assertThrows(
      () => parse(["--autoclear", "--no-autoclear"], options),
      UsageError,
      "--autoclear and --no-autoclear exclude each other",
    );
  });

  it("parses combined letters, with a value attached", () => {
    for (const args of [["-rPo4K"], ["-rPo", "4K"], ["-rP", "-o=4K"]]) {
      const given = parse(args, options);
      assertEquals(given.value("offset"), "4K", args.join(" "));
      assertEquals(given.flag("read-only"), true);
      assertEquals(given.flag("partscan"), true);
    }
  });

  it("does not treat the word after a flag as its value", () => {
    const given = parse(["-r", "false", "--partscan", "true"], options);
    assertEquals(given.operands, ["false", "true"]);
    assertEquals(given.flag("read-only"), true);
    assertEquals(given.flag("partscan"), true);
  });

  it("turns switches on and off", () => {
    const given = parse(["--autoclear", "--no-direct-io"], options);
    assertEquals(given.switched("autoclear"), true);
    assertEquals(given.switched("direct-io"), false);
  });
});

describe("parseTimeout()", () => {
  it("parses seconds, with or without a unit, and milliseconds", () => {
    assertEquals(parseTimeout("5s"), 5000);
    assertEquals(parseTimeout("500ms"), 500);
    assertEquals(parseTimeout("0.5s"), 500);
    assertEquals(parseTimeout("5"), 5000);
    for (const text of ["s", "-1s", "5 s", "1m", ""]) {
      assertThrows(() => parseTimeout(text), UsageError, "--timeout");
    }
  });
});

describe("parseDevice()", () => {
  it("accepts numbers, names and paths", () => {
    assertEquals(parseDevice("3"), 3);
    assertEquals(parseDevice("loop3"), "loop3");
    assertEquals(parseDevice("/run/dev/disk"), "/run/dev/disk");
    for (const wrong of ["4294967299", "loop99999999999", "/dev/loop1048576"]) {
      assertThrows(() => parseDevice(wrong), UsageError);
    }
  });
});

describe("parseDeviceNumber()", () => {
  it("returns the number in a name, without accessing the device", () => {
    assertEquals(parseDeviceNumber("3"), 3);
    assertEquals(parseDeviceNumber("loop12"), 12);
    assertEquals(parseDeviceNumber("/dev/loop12"), 12);
    assertThrows(() => parseDeviceNumber("loop1048576"), UsageError);
  });
});

describe("table()", () => {
  const columns = [
    { heading: "NAME", cell: (row: [string, number]) => row[0] },
    {
      heading: "SIZE",
      cell: (row: [string, number]) => String(row[1]),
      right: true,
    },
  ];

  it("aligns columns by their width on a terminal", () => {
    assertEquals(table([["a", 1], ["画像", 4096]], columns), [
      "NAME SIZE",
      "a       1",
      "画像 4096",
    ]);
  });

  it("keeps a row on one line whatever a name contains", () => {
    assertEquals(table([["a\nb\x1b[31m", 1]], columns, { headings: false }), [
      "a\\x0ab\\x1b[31m 1",
    ]);
  });

  it("shortens names in the middle to fit the terminal", () => {
    const shrinking = [
      { ...columns[0]!, narrowed: "cells" as const },
      columns[1]!,
      { heading: "ID", cell: () => "0123456789", narrowed: "column" as const },
    ];
    const rows: [string, number][] = [["/srv/images/画像/disk.img", 1]];
    assertEquals(
      table(rows, shrinking, { width: 41 })[1],
      [
        "/srv/images/画像/disk.img    1 0123456789",
      ][0],
    );
    for (let width = 13; width <= 35; width++) {
      const [heading, row] = table(rows, shrinking, { width });
      assert(unicodeWidth(row!) <= width, `${row} in ${width}`);
      assertMatch(row!, /\.img +1$/);
      assertMatch(heading!, /^NAME +SIZE$/);
    }
    assertEquals(
      table(rows, shrinking, { width: 22 })[1],
      "/srv/…像/disk.img    1",
    );
  });

  it("returns no lines without rows", () => {
    assertEquals(table([], columns), []);
  });
});

describe("formatSize()", () => {
  it("rounds to one decimal and a unit", () => {
    assertEquals(formatSize(0), "0B");
    assertEquals(formatSize(512), "512B");
    assertEquals(formatSize(64 * 2 ** 20), "64M");
    assertEquals(formatSize(1.5 * 2 ** 30), "1.5G");
  });
});

describe("drawDisk()", () => {
  const partition = (number: number, start: number, size: number) => ({
    number,
    path: `/dev/loop0p${number}`,
    start,
    size,
    type: "0x83",
  });

  it("draws partitions and free space to scale, in disk order", () => {
    const partitions = [
      { ...partition(2, 512, 256), name: "röot" },
      partition(1, 0, 256),
    ];
    assertEquals(drawDisk(partitions, 1024, 61), [
      "┌──────────────┬──────────────┬──────────────┬──────────────┐",
      "│1 256B        │256B··········│2 röot 256B   │256B··········│",
      "└──────────────┴──────────────┴──────────────┴──────────────┘",
    ]);
    assertEquals(
      drawDisk(partitions, 1024, 29)[1],
      "│1 256B│256B··│2 röot│256B··│",
    );
    assertEquals(drawDisk(partitions, 1024, 11)[1], "│1 │··│2│·│");
  });

  it("draws logical partitions in place of the extended one", () => {
    const extended = { ...partition(2, 512, 512), type: "0x5" };
    assertEquals(
      drawDisk([extended, partition(5, 512, 512)], 1024, 23)[1],
      "│512B······│5 512B    │",
    );
  });

  it("never draws beyond the given width", () => {
    const many = Array.from(
      { length: 60 },
      (_, index) => partition(index + 1, index * 512, 512),
    );
    for (let width = 0; width < 300; width++) {
      const lines = drawDisk(many, 61 * 512, width);
      if (lines.length === 0) continue;
      assertEquals(lines.map(unicodeWidth), [width, width, width]);
    }
    assertEquals(drawDisk(many, 61 * 512, 80), []);
    assertEquals(drawDisk(many, 61 * 512, 250).length, 3);
  });
});

describe("loopdev <command> --help", () => {
  it("begins with examples, and fits 80 columns", async () => {
    for (const [name, entry] of Object.entries(COMMANDS)) {
      const { command } = await entry.load();
      const help = helpOf({ name, entry }, command);
      const paragraphs = help.split("\n\n");
      assertMatch(paragraphs[1]!, /^Examples:\n {2}\S/, name);
      assertMatch(help, /^Usage: loopdev /m, name);
      assertMatch(paragraphs.at(-1)!, /Permissions:/, name);
      const wide = help.split("\n").filter((line) => line.length > 80);
      assertEquals(wide, [], name);
    }
  });
});

/** Returns the lines printed to stderr by a function. */
async function linesOf(act: () => void | Promise<void>): Promise<string[]> {
  const lines: string[] = [];
  const printed = console.error;
  console.error = (line: string) => lines.push(line);
  try {
    await act();
  } finally {
    console.error = printed;
  }
  return lines;
}

describe("report()", () => {
  it("prints every error on its own line", async () => {
    const error = (name: string) =>
      new LoopError(`Cannot detach ${name}`, {
        errno: 16,
        operation: "detach",
      });
    const lines = await linesOf(() => {
      const status = report(
        new SuppressedError(
          error("c"),
          new SuppressedError(error("b"), error("a")),
        ),
      );
      assertEquals(status, 1);
    });
    assertEquals(
      lines,
      ["a", "b", "c"].map((name) =>
        `loopdev: Cannot detach ${name}: device or resource busy (EBUSY)`
      ),
    );
  });

  it("prints no control characters, whatever was thrown", async () => {
    const text = "a\x1b[2J\n\x9b\u202eb";
    const thrown = [
      new LoopError(text, { errno: 5, operation: "open" }),
      new Deno.errors.NotCapable(text),
      new RangeError(text),
      new Error(text), // with a stack
      text,
    ];
    for (const error of thrown) {
      const [first, ...frames] = await linesOf(() => {
        report(error);
      });
      assertStringIncludes(first!, "a\\x1b[2J\\x0a\\x9b\\u202eb");
      for (const frame of frames) assertMatch(frame, /^ {4}at /);
    }
  });
});

describe("main()", () => {
  it("prints no control characters from its arguments", async () => {
    const text = `\x1b[2J\n\x9b\u202e${"x".repeat(300)}`;
    const wrong = [
      [text],
      ["list", text],
      ["list", `--${text}`],
      ["list", `--${text}=1`],
      ["list", "-\x1b"],
      ["list", "-O", text],
      ["attach", "--device", text, "a", "b"],
      ["attach", "-o", text, "a"],
      ["attach", "-b", text, "a"],
      ["detach", "--timeout", text, "0"],
      ["remove", text],
      ["find", "a", text],
      ["completions", text],
    ];
    for (const args of wrong) {
      const lines = await linesOf(async () => {
        assertEquals(await main(args), 2);
      });
      assertEquals(lines.length, 1);
      assertEquals(lines[0], escapeControls(lines[0]!));
      assert(lines[0]!.length < 1000, lines[0]);
    }
  });
});
