import { type Check, doctor } from "../doctor.ts";
import { escapeControls } from "../errors.ts";
import { none, parse } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { printJson, printLines, terminalWidth } from "./output.ts";
import { wrapWords } from "./text.ts";
import { inWords } from "./words.ts";

const OPTIONS: Options = {
  json: {
    help:
      'print {"canAttach": true, "checks": [...]}; a check has name, status (ok, warning, problem), finding, and usually remedy',
  },
};

export const command: Command = {
  title: "Diagnose why loop devices do not work here, and what to do about it.",
  examples: `loopdev doctor
loopdev doctor --json | jq '.checks[] | select(.status != "ok")'`,
  options: OPTIONS,
  notes:
    `Problems come first, with their common cause at the top. Changes nothing. The exit
status is 1 if attaching cannot work. Permissions: deno run --allow-ffi.`,
  run,
};

const MARKS = { ok: "ok", warning: "warning", problem: "PROBLEM" };
/** Colors on a terminal: green, yellow, bold red. */
const COLORS = { ok: "32", warning: "33", problem: "1;31" };

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  none(given.operands);
  const checks = (await doctor()).map(inWordsOfCommands);
  const canAttach = checks.every(({ status }) => status !== "problem");
  if (given.flag("json")) printJson({ canAttach, checks });
  else printLines(lines(checks));
  return canAttach ? 0 : 1;
}

/** Rewrites a check to name options and commands instead of functions of the module. */
function inWordsOfCommands(check: Check): Check {
  return {
    ...check,
    finding: inWords(check.finding),
    ...(check.remedy !== undefined && { remedy: inWords(check.remedy) }),
  };
}

/** Formats one line per check, which is colored and broken between words on a terminal. */
function lines(checks: Check[]): string[] {
  const columns = terminalWidth();
  const inColor = columns !== undefined && !Deno.noColor;
  const width = Math.max(...checks.map(({ name }) => name.length));
  return checks.flatMap(({ name, status, finding, remedy }) => {
    const mark = MARKS[status].padEnd(MARKS.warning.length);
    const shown = inColor ? `\x1b[${COLORS[status]}m${mark}\x1b[0m` : mark;
    const head = `${shown}  ${name.padEnd(width)}  `;
    const indent = MARKS.warning.length + width + 4;
    const texts = [finding, ...remedy === undefined ? [] : [`-> ${remedy}`]]
      .map(escapeControls);
    if (columns === undefined) return [head + texts.join(" ")];
    const room = Math.max(20, columns - indent);
    const [first = "", ...rest] = texts.flatMap((text) =>
      wrapWords(text, room)
    );
    return [head + first, ...rest.map((line) => " ".repeat(indent) + line)];
  });
}
