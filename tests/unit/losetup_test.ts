import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { fromBytes, toBytes } from "../../lib/losetup/byte_string.ts";
import { chooseColumns } from "../../lib/losetup/columns.ts";
import { Failure } from "../../lib/losetup/failure.ts";
import {
  getopt,
  GetoptError,
  type LongOption,
} from "../../lib/losetup/getopt.ts";
import { parseRequest } from "../../lib/losetup/request.ts";
import { parseSize } from "../../lib/losetup/size.ts";
import { formatTable, type TableStyle } from "../../lib/losetup/table.ts";

describe("fromBytes()", () => {
  it("preserves every byte", () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    assertEquals(toBytes(fromBytes(bytes)), bytes);
  });
});

describe("getopt()", () => {
  const long: LongOption[] = [
    { name: "all", key: "a", argument: "none" },
    { name: "output", key: "O", argument: "required" },
    { name: "output-all", key: "output-all", argument: "none" },
    { name: "direct-io", key: "direct-io", argument: "optional" },
  ];
  const parse = (line: string, stopsAtOperand = false) => {
    const operands: string[] = [];
    const grammar = {
      letters: "aO:v",
      long,
      stopsAtOperand: () => stopsAtOperand,
    };
    const given = [...getopt(line.split(" "), grammar, operands)]
      .map(({ key, value }) => value === undefined ? key : `${key}=${value}`);
    return [given.join(" "), operands.join(" ")];
  };

  it("accepts options and operands in any order", () => {
    assertEquals(parse("x -a y --output=1 -O 2 -O3 -avO 4 z"), [
      "a O=1 O=2 O=3 a v O=4",
      "x y z",
    ]);
    assertEquals(parse("-a x -a", true), ["a", "x -a"]);
    assertEquals(parse("x -a -- -v -"), ["a", "x -v -"]);
    assertEquals(parse("- -a"), ["a", "-"]);
  });

  it("accepts abbreviations, and prefers an exact name", () => {
    assertEquals(parse("--al --output x --output-a --d --d=on y"), [
      "a O=x output-all direct-io direct-io=on",
      "y",
    ]);
  });

  it("refuses unknown and ambiguous options, and missing arguments", () => {
    const wrong: [string, string][] = [
      ["-x", "invalid option -- 'x'"],
      ["-ax", "invalid option -- 'x'"],
      ["-:", "invalid option -- ':'"],
      ["--bogus=1", "unrecognized option '--bogus=1'"],
      ["--out x", "ambiguous; possibilities: '--output' '--output-all'"],
      ["-O", "option requires an argument -- 'O'"],
      ["--output", "option '--output' requires an argument"],
      ["--al=1", "option '--all' doesn't allow an argument"],
    ];
    for (const [line, message] of wrong) {
      assertThrows(() => parse(line), GetoptError, message);
    }
  });
});

describe("parseSize() of losetup", () => {
  it("parses units, and fractions as losetup computes them", () => {
    const sizes: [string, bigint][] = [
      ["1.5M", 1572864n],
      ["1KB", 1000n],
      ["1KiB", 1024n],
      ["0x10K", 16384n],
      ["010", 8n],
      ["1.9K", 2048n],
      ["1.10K", 2048n],
      ["1.01M", 1059061n],
      ["0.0000001E", 115292150460n],
      ["18446744073709551615", 2n ** 64n - 1n],
    ];
    for (const [text, size] of sizes) {
      assertEquals(parseSize(text, "x"), size, text);
    }
  });

  it("refuses everything else", () => {
    for (const text of ["", "-1", "1.5", "1B", "1KIB", "09", "1e3", "1 "]) {
      assertThrows(
        () => parseSize(text, "what"),
        Failure,
        `what: '${text}': Invalid argument`,
      );
    }
    for (const text of ["16E", "1Z", "18446744073709551616"]) {
      assertThrows(() => parseSize(text, "x"), Failure, "result out of range");
    }
  });
});

describe("chooseColumns()", () => {
  const names = (output: string | undefined, all = false) =>
    chooseColumns(output, all).map(({ name }) => name).join(" ");

  it("prints columns of later versions only if named", () => {
    assertEquals(names("ref,Back-Maj"), "REF BACK-MAJ");
    assertEquals(names(undefined, true).includes("REF"), false);
    assertEquals(names("+REF"), `${names(undefined)} REF`);
  });
});

describe("parseRequest()", () => {
  const request = (args: string[]) => parseRequest(args, () => false);

  it("accepts options of later versions, which make no abbreviation ambiguous", () => {
    assertEquals(request(["--remove", "x"]).action, "remove");
    assertEquals(request(["--rem", "x"]).devices, ["x"]);
    assertEquals(
      request(["--loop=a", "-f", "x"]).reference,
      "a",
    );
    assertEquals(request(["--l"]).action, "list");
    assertEquals(request(["--re", "-f", "x"]).readOnly, true);
  });

  it("refuses options for tables with two operands", () => {
    for (
      const option of ["-l", "-J", "--raw", "-n", "-ONAME", "--output-all"]
    ) {
      assertThrows(
        () => request([option, "/dev/x", "/dev/y"]),
        Failure,
        "unexpected arguments",
      );
    }
  });
});

describe("formatTable() of losetup", () => {
  const columns = [
    { name: "NAME", type: "string", right: false },
    { name: "RO", type: "boolean", right: true },
    { name: "SIZE", type: "number", right: true },
  ] as const;
  const format = (row: (string | undefined)[], style: Partial<TableStyle>) =>
    formatTable(columns, [row], {
      format: "aligned",
      headings: false,
      isUtf8: true,
      ...style,
    });
  const fromText = (text: string) => fromBytes(new TextEncoder().encode(text));

  it("aligns columns by their width on a terminal, and escapes other bytes", () => {
    assertEquals(
      format([fromText("画像"), "1", "5"], {}),
      fromText("画像  1    5\n"),
    );
    assertEquals(format(["a\n\\x", "1", "5"], {}), "a\\x0a\\x5cx  1    5\n");
    assertEquals(format(["\xff", "1", undefined], {}), "\\xff  1 \n");
    assertEquals(
      format([fromText("ü"), "0", "5"], { isUtf8: false }),
      "\\xc3\\xbc  0    5\n",
    );
  });

  it("escapes blanks in raw cells", () => {
    assertEquals(
      format(["a b\t\\", undefined, "5"], { format: "raw" }),
      "a\\x20b\\x09\\x5c  5\n",
    );
  });

  it("prints JSON that preserves every byte", () => {
    const json = format(['a"\\\x01\xff\n', "1", undefined], { format: "json" });
    assertEquals(
      json,
      `{
   "loopdevices": [
      {
         "name": "a\\"\\\\\\u0001\xff\\n",
         "ro": true,
         "size": null
      }
   ]
}
`,
    );
  });

  it("returns no lines without rows, except in JSON", () => {
    const style = { headings: true, isUtf8: true };
    assertEquals(formatTable(columns, [], { ...style, format: "raw" }), "");
    assertEquals(
      JSON.parse(formatTable(columns, [], { ...style, format: "json" })),
      { loopdevices: [] },
    );
  });
});
