import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  escapeControls,
  LoopError,
  printable,
  quote,
} from "../../lib/errors.ts";

/** Text that a terminal interprets, escaped and as part of a quoted name. */
const ACTED_ON: [text: string, escaped: string, quoted: string][] = [
  ["\x1b[2J", "\\x1b[2J", "\\u001b[2J"],
  ["\x9b31m", "\\x9b31m", "\\u009b31m"],
  ["\x7f", "\\x7f", "\\u007f"],
  ["a\nb", "a\\x0ab", "a\\nb"],
  ["\u2028\u2029", "\\u2028\\u2029", "\\u2028\\u2029"],
  ["\u202e\u2066", "\\u202e\\u2066", "\\u202e\\u2066"],
  ["\u200b\ufeff\xad", "\\u200b\\ufeff\\xad", "\\u200b\\ufeff\\u00ad"],
  ["\ud800x", "\\ud800x", "\\ud800x"],
  ["x\udfff", "x\\udfff", "x\\udfff"],
  ["\u{e0041}", "\\udb40\\udc41", "\\udb40\\udc41"],
];

describe("printable()", () => {
  it("escapes control characters", () => {
    for (const [text, escaped] of ACTED_ON) {
      assertEquals(printable(text), escaped);
    }
  });

  it("does not change other characters", () => {
    for (const text of ["disk.img", "größe 画像 😀", '"a\\b"', "\u00a0"]) {
      assertEquals(printable(text), text);
    }
  });

  it("cuts a name after 200 characters, but never splits a surrogate pair", () => {
    assertEquals(printable("x".repeat(200)), "x".repeat(200));
    assertEquals(printable("x".repeat(300)), `${"x".repeat(200)}…`);
    assertEquals(printable("x".repeat(199) + "😀😀"), `${"x".repeat(199)}…`);
  });
});

describe("quote()", () => {
  it("escapes control characters so that JSON.parse() restores them", () => {
    for (const [text, , quoted] of ACTED_ON) {
      assertEquals(quote(text), `"${quoted}"`);
      assertEquals(JSON.parse(quote(text)), text);
    }
    assertEquals(quote('a "b" 😀'), '"a \\"b\\" 😀"');
  });

  it("cuts a name after 200 characters", () => {
    assertEquals(quote("x".repeat(300)), `"${"x".repeat(200)}…"`);
  });
});

describe("escapeControls()", () => {
  it("has no further effect when applied twice", () => {
    for (const [text] of ACTED_ON) {
      for (const once of [escapeControls(text), quote(text), printable(text)]) {
        assertEquals(escapeControls(once), once);
      }
    }
  });
});

describe("LoopError", () => {
  it("contains no control characters", () => {
    for (const [text, escaped] of ACTED_ON) {
      const error = new LoopError(`Cannot use ${text}`, {
        errno: 5,
        operation: "open",
        hint: `it is ${text}`,
      });
      assertEquals(
        error.message,
        `Cannot use ${escaped}: input/output error (EIO): it is ${escaped}`,
      );
    }
  });
});
