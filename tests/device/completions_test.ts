/** Completion of command lines, in the shells themselves. */
import { attach } from "@loopdev/loopdev";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { PROJECT } from "./namespace.ts";
import {
  onDevices,
  OwnDevice,
  run,
  runOk,
  type Scratch,
  withScratch,
} from "./support.ts";

/** The words that a shell offers for the last one of a command line. */
type Completer = (
  scratch: Scratch,
  script: string,
  line: string,
) => string[];

function words(text: string): string[] {
  return text.split("\n").filter((word) => word !== "").sort();
}

/** bash splits the line itself, so it is given as words. */
const bash: Completer = (scratch, script, line) =>
  words(runOk(
    "bash",
    "-c",
    `cd ${scratch.path}; source ${script}; COMP_WORDS=("\${@}"); COMP_CWORD=$(($# - 1))
     _loopdev 2> /dev/null; printf '%s\\n' "\${COMPREPLY[@]}"`,
    "bash",
    ...line.split(" "),
  ));

const fish: Completer = (scratch, script, line) =>
  words(
    runOk(
      "fish",
      "--no-config",
      "-c",
      `cd ${scratch.path}; source ${script}; complete -C "${line}"`,
    ).replace(/\t.*$/gm, ""),
  );

/** An interactive zsh on a terminal of its own: a tab after the line, and what the line is then. */
const zsh: Completer = (scratch, script, line) => {
  const driver = `${scratch.path}/driver.zsh`;
  Deno.writeTextFileSync(
    driver,
    `zmodload zsh/zpty
     zpty shell zsh -f -i
     zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -C -d ${scratch.path}/zcompdump; source ${script}; cd ${scratch.path}'
     zpty -w shell 'tell() { print -r -- "<<$BUFFER>>"; exit }; zle -N tell; bindkey "^X" tell'
     zpty -w shell 'print REA''DY'
     while zpty -r shell text; do [[ $text == *READY* ]] && break; done
     zpty -w -n shell "$1"$'\\t\\x18'
     while zpty -r shell text; do
       [[ $text == *'<<'*'>>'* ]] && print -r -- \${\${text##*<<}%%>>*} && break
     done`,
  );
  const whole = runOk("timeout", "20", "zsh", driver, line).trimEnd();
  return [whole.slice(line.lastIndexOf(" ") + 1)];
};

/** The script of a shell. */
function scriptFor(shell: string, scratch: Scratch): string {
  const path = `${scratch.path}/completion.${shell}`;
  const { code, stdout, stderr } = run(
    Deno.execPath(),
    ..."run --no-check --no-prompt".split(" "),
    ...[`${PROJECT}/cli.ts`, "completions", shell],
  );
  assertEquals([code, stderr], [0, ""]);
  Deno.writeTextFileSync(path, stdout);
  return path;
}

function group(name: string): { title: string; ignore: boolean } {
  const isThere = run("sh", "-c", `command -v ${name}`).code === 0;
  return isThere
    ? { title: `loopdev completions ${name}`, ignore: onDevices.ignore }
    : {
      title: `loopdev completions ${name} (skipped: it is not installed)`,
      ignore: true,
    };
}

for (const [shell, complete] of Object.entries({ bash, fish, zsh })) {
  const { title, ignore } = group(shell);
  describe(title, { ignore }, () => {
    it(
      "offers commands, options, their values, files and devices",
      withScratch(async (scratch) => {
        using own = new OwnDevice();
        await using a = await attach(scratch.image(), { minor: own.minor });
        Deno.mkdirSync(`${scratch.path}/directory`);
        const script = scriptFor(shell, scratch);
        const expectations: [line: string, only: string][] = [
          ["loopdev deta", "detach"],
          ["loopdev completions b", "bash"],
          ["loopdev list --nohe", "--noheadings"],
          ["loopdev set --no-auto", "--no-autoclear"],
          ["loopdev list -O NAME,BA", "NAME,BACK-FILE"],
          ["loopdev attach -b pr", "probe"],
          ["loopdev attach di", shell === "zsh" ? "di" : "disk.img"],
          ["loopdev attach dis", "disk.img"],
          ["loopdev mknod loop0 dire", "directory"],
          [`loopdev detach ${a.path}`, a.path],
          [`loopdev attach --device ${a.path}`, a.path],
          [`loopdev swap ${a.path} dis`, "disk.img"],
        ];
        for (const [line, only] of expectations) {
          const offered = complete(scratch, script, line)
            .map((word) => word.replace(/[/,]$/, ""));
          if (line.endsWith(" di")) assertStringIncludes(offered.join(), only);
          else assertEquals(offered, [only], line);
        }
      }),
    );
  });
}

describe("loopdev completions", () => {
  it("refuses a shell that it does not know", () => {
    const { code, stderr } = run(
      Deno.execPath(),
      ..."run --no-check --no-prompt".split(" "),
      ...[`${PROJECT}/cli.ts`, "completions", "tcsh"],
    );
    assertEquals(code, 2);
    assert(stderr.startsWith("loopdev: SHELL is bash, zsh, fish"), stderr);
  });
});
