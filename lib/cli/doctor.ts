import { type Check, doctor } from "../doctor.ts";
import { parse, UsageError } from "./arguments.ts";
import type { Command, Options } from "./command.ts";
import { print, printJson } from "./output.ts";
import { escapeControls } from "./table.ts";

const OPTIONS: Options = {
  json: {
    help: `print {"canAttach": true, "checks": [...]}; a check has name, status
(ok, warning, problem), finding, and mostly remedy`,
  },
};

export const command: Command = {
  title: "Tell why loop devices do not work here, and what to do about it.",
  examples: `loopdev doctor
loopdev doctor --json | jq '.checks[] | select(.status != "ok")'`,
  options: OPTIONS,
  notes:
    `Problems come first, the cause of them all at the top. Changes nothing. The exit status
is 1 when attaching cannot work. Permissions: deno run --allow-ffi.`,
  run,
};

const MARKS = { ok: "ok", warning: "warning", problem: "PROBLEM" };
/** How a terminal shows them: green, yellow, bold red. */
const COLOURS = { ok: "32", warning: "33", problem: "1;31" };

async function run(args: string[]): Promise<number> {
  const given = parse(args, OPTIONS);
  if (given.operands.length > 0) {
    throw new UsageError("doctor takes no operand");
  }
  const checks = await doctor();
  const canAttach = checks.every(({ status }) => status !== "problem");
  if (given.flag("json")) printJson({ canAttach, checks });
  else lines(checks).forEach(print);
  return canAttach ? 0 : 1;
}

function lines(checks: Check[]): string[] {
  const inColour = Deno.stdout.isTerminal() && !Deno.noColor;
  const width = Math.max(...checks.map(({ name }) => name.length));
  return checks.map(({ name, status, finding, remedy }) => {
    const mark = MARKS[status].padEnd(MARKS.warning.length);
    const shown = inColour ? `\x1b[${COLOURS[status]}m${mark}\x1b[0m` : mark;
    const advice = remedy === undefined ? "" : ` -> ${remedy}`;
    return `${shown}  ${name.padEnd(width)}  ${
      escapeControls(finding + advice)
    }`;
  });
}
