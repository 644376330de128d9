import { only, parse } from "./arguments.ts";
import type { Command, Commands } from "./command.ts";
import { bash } from "./completions/bash.ts";
import { fish } from "./completions/fish.ts";
import { type Shell, SHELLS, type Subject } from "./completions/subject.ts";
import { zsh } from "./completions/zsh.ts";
import { print } from "./output.ts";
import { UsageError } from "./usage_error.ts";

export const command: Command = {
  title: "Print a script that completes command lines of loopdev in a shell.",
  examples:
    `loopdev completions bash > ~/.local/share/bash-completion/completions/loopdev
loopdev completions zsh > ~/.zfunc/_loopdev    a directory of $fpath
loopdev completions fish > ~/.config/fish/completions/loopdev.fish
source <(loopdev completions bash)             for this session`,
  options: {},
  notes:
    `SHELL is bash, zsh or fish. The script needs only the shell, and finds devices in
/sys/block. Permissions: none.`,
  run,
};

async function run(args: string[], commands: Commands): Promise<number> {
  const shell = only(parse(args).operands, "SHELL");
  if (!isShell(shell)) throw new UsageError(`SHELL is ${SHELLS.join(", ")}`);
  const subjects = await Promise.all(
    Object.entries(commands).map(async ([name, entry]) => ({
      name,
      summary: entry.summary,
      operands: operandsOf(entry.operands),
      options: { ...(await entry.load()).command.options, help: HELP },
    })),
  );
  print(WRITERS[shell](subjects));
  return 0;
}

const WRITERS: Record<Shell, (subjects: readonly Subject[]) => string> = {
  bash,
  zsh,
  fish,
};

function isShell(name: string): name is Shell {
  return Object.hasOwn(WRITERS, name);
}

const HELP = { letter: "h", help: "explain this command" };

/** Splits `DEV [FILE]...` into words, without brackets, dots, and anything after `--`. */
function operandsOf(operands: string): string[] {
  return operands.replace(/ \[-- .*$/, "").split(" ")
    .map((word) => word.replace(/[[\]]|\.\.\./g, ""))
    .filter((word) => word !== "");
}
