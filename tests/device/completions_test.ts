/** Tests completion in the shells themselves. */
import { attach } from "@loopdev/loopdev";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CLI,
  onAnyKernel,
  onDevices,
  OwnDevice,
  run,
  runOk,
  type Scratch,
  withScratch,
} from "./support.ts";

/** Returns the words that a shell offers for the last word of each command line. */
type Completer = (
  scratch: Scratch,
  script: string,
  lines: string[],
) => string[][];

function words(text: string): string[] {
  return text.split("\n").filter((word) => word !== "").sort();
}

/** Completes in bash. bash splits the line itself, so the line is passed as words. */
const bash: Completer = (scratch, script, lines) =>
  lines.map((line) =>
    words(runOk(
      "bash",
      "-c",
      `cd ${scratch.path}; source ${script}; COMP_WORDS=("\${@}"); COMP_CWORD=$(($# - 1))
       _loopdev 2> /dev/null; printf '%s\\n' "\${COMPREPLY[@]}"`,
      "bash",
      ...line.split(" "),
    ))
  );

const fish: Completer = (scratch, script, lines) => {
  const commands = lines.map((line) => `complete -C "${line}"; echo ====`);
  const output = runOk(
    "fish",
    "--no-config",
    "-c",
    `cd ${scratch.path}; source ${script}; ${commands.join("; ")}`,
  );
  return output.replace(/\t.*$/gm, "").split(/^====$/m).slice(0, -1).map(words);
};

/**
 * Completes in an interactive zsh on its own terminal, by typing a tab and reading the
 * line.
 */
const zsh: Completer = (scratch, script, lines) => {
  const driver = `${scratch.path}/driver.zsh`;
  Deno.writeTextFileSync(
    driver,
    `zmodload zsh/zpty
     zpty shell zsh -f -i
     zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; source ${script}; cd ${scratch.path}'
     zpty -w shell 'tell() { print -r -- "<<$BUFFER>>"; BUFFER= }; zle -N tell; bindkey "^T" tell'
     zpty -w shell 'print REA''DY'
     while zpty -r shell text; do [[ $text == *READY* ]] && break; done
     for line; do
       zpty -w -n shell "$line"$'\\t\\x14'
       while zpty -r shell text; do
         [[ $text == *'<<'*'>>'* ]] && print -r -- \${\${text##*<<}%%>>*} && break
       done
     done`,
  );
  const wholes = runOk("timeout", "120", "zsh", driver, ...lines).split("\n");
  return wholes.map((whole, index) => [
    whole.trimEnd().slice(lines[index]!.lastIndexOf(" ") + 1),
  ]);
};

/** Returns the completion script of a shell. */
function scriptFor(shell: string, scratch: Scratch): string {
  const path = `${scratch.path}/completion.${shell}`;
  const { code, stdout, stderr } = run(
    Deno.execPath(),
    ..."run --no-check --no-prompt".split(" "),
    ...[CLI, "completions", shell],
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
  describe(...onAnyKernel(title, { ignore }), () => {
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
          ["loopdev partitions dis", "disk.img"],
          [`loopdev partitions ${a.path}`, a.path],
          ["loopdev detach --under dire", "directory"],
          ["loopdev help deta", "detach"],
          ["loopdev mount dis", "disk.img"],
          ["loopdev mount -r --partition 1 dis", "disk.img"],
          ["loopdev mount -p 1 disk.img dire", "directory"],
          [`loopdev mount --partition 1 ${a.path}`, a.path],
        ];
        const offered = complete(
          scratch,
          script,
          expectations.map(([line]) => line),
        );
        expectations.forEach(([line, only], index) => {
          const found = offered[index]!.map((word) =>
            word.replace(/[/,]$/, "")
          );
          if (line.endsWith(" di")) assertStringIncludes(found.join(), only);
          else assertEquals(found, [only], line);
        });
      }),
    );
  });
}

describe("loopdev completions", () => {
  it("refuses an unknown shell", () => {
    const { code, stderr } = run(
      Deno.execPath(),
      ..."run --no-check --no-prompt".split(" "),
      ...[CLI, "completions", "tcsh"],
    );
    assertEquals(code, 2);
    assert(stderr.startsWith("loopdev: SHELL is bash, zsh, fish"), stderr);
  });
});
