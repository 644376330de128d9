/** Help, completion and messages say what the command line really takes. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import type { Command, Commands } from "../../lib/cli/command.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { command as completions } from "../../lib/cli/completions.ts";
import { help, helpOf } from "../../lib/cli/help.ts";
import { formatOf } from "../../lib/cli/image_formats.ts";
import { main } from "../../lib/cli/main.ts";
import { edits, suggest } from "../../lib/cli/spelling.ts";
import { clip, clipMiddle, widthOf } from "../../lib/cli/text.ts";
import { withWaitingMessage } from "../../lib/cli/waiting_message.ts";
import { inWords } from "../../lib/cli/words.ts";
import { printed } from "./console.ts";

const commands: [string, Command][] = [];
for (const [name, entry] of Object.entries(COMMANDS)) {
  commands.push([name, (await entry.load()).command]);
}

describe("options, help and completion", () => {
  for (const [name, { options, title, examples, notes }] of commands) {
    it(`of ${name}: texts name no option that it does not take`, () => {
      const known = Object.entries(options).flatMap(([long, option]) => [
        `--${long}`,
        ...option.negatable ? [`--no-${long}`] : [],
        ...option.letter ? [`-${option.letter}`] : [],
      ]);
      const own = examples.split("\n")
        .filter((line) => line.includes(`loopdev ${name}`))
        .map((line) =>
          line.slice(line.indexOf(`loopdev ${name}`))
            .replace(/ -- .*| {3,}.*|\|.*/, "")
        );
      const texts = [
        title,
        ...own,
        notes.replace(/deno run[^.]*/g, "")
          .replace(
            /loopdev (\w+) --[\w-]+/g,
            (text, other) => other === name ? text : "",
          ), // an option of another command
      ];
      const named = texts.join("\n").match(/(?<=^|[ (])--?[a-z][a-z-]*/gim) ??
        [];
      for (const option of named) {
        const letters = /^-[a-zA-Z]{2,}$/.test(option)
          ? [...option.slice(1)].map((letter) => `-${letter}`)
          : [option];
        for (const word of letters) {
          const isKnown = known.includes(word) || word === "--help" ||
            word === "-9"; // of kill
          assert(isKnown, `${name} does not take ${word}`);
        }
      }
    });

    it(`of ${name}: the help has each option`, async () => {
      const entry = COMMANDS[name]!;
      const text = helpOf(
        { name, entry },
        await entry.load().then((loaded) => loaded.command),
      );
      for (const [long, { letter, help }] of Object.entries(options)) {
        assertStringIncludes(text, long);
        if (letter) assertStringIncludes(text, `-${letter}, --`);
        assert(help.length > 10, long);
      }
    });
  }

  it("lists all commands and aliases in the help", () => {
    const text = help(COMMANDS);
    for (const [name, { alias, summary }] of Object.entries(COMMANDS)) {
      assertStringIncludes(text, alias ? `  ${name}, ${alias}` : `  ${name} `);
      assertStringIncludes(text, summary);
    }
  });

  it("offers all commands and options in every shell", async () => {
    for (const shell of ["bash", "zsh", "fish"]) {
      const script = async (commands: Commands) =>
        (await printed(() => completions.run([shell], commands))).stdout;
      const whole = await script(COMMANDS);
      for (const [name, { options }] of commands) {
        assertStringIncludes(whole, name);
        const part = await script({ [name]: COMMANDS[name]! });
        for (const [long, { negatable, letter }] of Object.entries(options)) {
          const dashes = shell === "fish" ? "-l " : "--";
          assertStringIncludes(part, `${dashes}${long}`);
          if (negatable) assertStringIncludes(part, `${dashes}no-${long}`);
          if (letter && shell !== "bash") { // bash offers words alone
            assertMatch(part, new RegExp(`-(s )?${letter}\\b`));
          }
        }
      }
    }
  });
});

describe("loopdev help", () => {
  it("is what loopdev alone and loopdev --help print", async () => {
    for (const args of [[], ["help"], ["--help"], ["-h"]]) {
      const { code, stdout } = await printed(() => main(args));
      assertEquals([code, stdout], [0, `${help(COMMANDS)}\n`], args.join());
    }
  });

  it("explains a command, by its alias too", async () => {
    const { stdout } = await printed(() => main(["list", "--help"]));
    for (const args of [["help", "list"], ["help", "ls"], ["ls", "-h"]]) {
      assertEquals((await printed(() => main(args))).stdout, stdout);
    }
    assertStringIncludes(stdout, "Alias: loopdev ls");
    const losetup = await printed(() => main(["help", "losetup"]));
    assertStringIncludes(losetup.stdout, "losetup");
  });
});

describe("suggest()", () => {
  const names = Object.keys(COMMANDS);

  it("finds the nearest word", () => {
    const pairs = [
      ["lits", "list"],
      ["atach", "attach"],
      ["dettach", "detach"],
      ["partition", "partitions"],
      ["hlep", "help"],
      ["comp", "completions"],
    ];
    for (const [word, meant] of pairs) {
      assertEquals(suggest(word!, names), `: did you mean ${meant}?`);
    }
  });

  it("says nothing of words that resemble none", () => {
    for (const word of ["xyz", "mkfs.ext4", "", "x".repeat(1000)]) {
      assertEquals(suggest(word, names), "", word);
    }
  });

  it("counts exchanged letters once", () => {
    assertEquals(edits("lits", "list"), 1);
    assertEquals(edits("", "abc"), 3);
    assertEquals(edits("kitten", "sitting"), 3);
  });
});

describe("wrong usage", () => {
  it("suggests commands, options and columns", async () => {
    const cases: [args: string[], message: string][] = [
      [["lst"], 'unknown command "lst": did you mean list?'],
      [["help", "atach"], 'unknown command "atach": did you mean attach?'],
      [["list", "--jsno"], "unknown option --jsno: did you mean --json?"],
      [["detach", "-lazy"], "unknown option -l: did you mean --lazy?"],
      [["list", "-O", "NAMES"], 'unknown column "NAMES": did you mean NAME?'],
      [
        ["-a"],
        "unknown option -a: for the options of losetup, use loopdev losetup",
      ],
    ];
    for (const [args, message] of cases) {
      const { code, stderr } = await printed(() => main(args));
      assertEquals(code, 2, args.join(" "));
      assertStringIncludes(stderr, `loopdev: ${message} (see loopdev help`);
    }
  });

  it("names the option whose value is wrong, before a FILE that it has swallowed", async () => {
    for (const option of ["--offset", "--sizelimit", "--sector-size"]) {
      const { stderr } = await printed(() => main(["attach", option, "a.img"]));
      assertStringIncludes(stderr, `${option} takes a size such as`);
      assertStringIncludes(stderr, 'not "a.img"');
    }
  });
});

describe("inWords()", () => {
  it("says options and commands instead of names of the module", () => {
    assertEquals(inWords("use readOnly: true to"), "use -r (--read-only) to");
    assertEquals(inWords('overlap: "allow" does'), "--overlap does");
    assertEquals(
      inWords("there is no loop7; LoopControl.add(7) adds it"),
      "there is no loop7",
    );
    assertEquals(
      inWords("no such device (ENODEV): it is a regular file"),
      "no such device (ENODEV): it is a regular file; loopdev find prints the devices of a file",
    );
  });
});

describe("formatOf()", () => {
  it("knows compressed files and images of other programs by what they begin with", () => {
    const heads: [name: string | undefined, head: number[]][] = [
      ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
      ["gzip", [0x1f, 0x8b, 0x08, 0x00]],
      ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
      ["qcow2", [0x51, 0x46, 0x49, 0xfb]],
      ["VMDK", [0x4b, 0x44, 0x4d, 0x56]],
      ["VMDK", [...new TextEncoder().encode("# Disk DescriptorFile\n")]],
      ["VHDX", [...new TextEncoder().encode("vhdxfile")]],
      ["an Android sparse image", [0x3a, 0xff, 0x26, 0xed]],
      [undefined, [0x68, 0x73, 0x71, 0x73]], // squashfs
      [undefined, Array(32).fill(0)],
      [undefined, []],
    ];
    for (const [name, head] of heads) {
      assertEquals(formatOf(new Uint8Array(head))?.name, name);
    }
  });
});

describe("clipMiddle()", () => {
  it("keeps the end, and never takes more columns than there are", () => {
    for (
      const text of [
        "/a/long/path/to/disk.img",
        "/画像/ディスク/画像.img",
        "é".repeat(30),
      ]
    ) {
      for (let width = 1; width < 40; width++) {
        assert(widthOf(clipMiddle(text, width)) <= width);
        assert(widthOf(clip(text, width)) <= width);
      }
      assertEquals(clipMiddle(text, 80), text);
    }
    assertEquals(
      clipMiddle("/a/long/path/to/disk.img", 16),
      "/a/lo…o/disk.img",
    );
  });
});

describe("withWaitingMessage()", () => {
  it(
    "names users that come after a wait for data, even without a terminal",
    { ignore: Deno.stderr.isTerminal() },
    async () => {
      const found = [[], ["open in process 7"]];
      const told = Promise.withResolvers<number>();
      const wait = {
        name: "disk",
        timeout: 60_000,
        outcome: "it stays",
        whoUses: () => {
          if (found.length === 1) setTimeout(told.resolve, 0, 0);
          return Promise.resolve(found.shift()!);
        },
      };
      const { stderr } = await printed(() =>
        withWaitingMessage(wait, () => told.promise)
      );
      assertMatch(
        stderr,
        /^loopdev: waiting for the data of disk\nloopdev: waiting up to \d+ s for disk: open in process 7; after that it stays\n$/,
      );
    },
  );
});
