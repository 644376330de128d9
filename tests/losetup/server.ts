/**
 * Runs command lines, given as JSON on lines of their own, in one process that has only
 * `--allow-ffi`: starting Deno for each would take longer than everything else. With
 * the argument `nobody`, runs as an unprivileged user.
 */
import { ours } from "./ours.ts";

if (Deno.args[0] === "nobody") becomeNobody();

const encoder = new TextEncoder();

let text = "";
for await (
  const chunk of Deno.stdin.readable.pipeThrough(new TextDecoderStream())
) {
  text += chunk;
  for (let end; (end = text.indexOf("\n")) >= 0;) {
    await answer(text.slice(0, end));
    text = text.slice(end + 1);
  }
}

async function answer(line: string): Promise<void> {
  const { args, env } = JSON.parse(line);
  const output = JSON.stringify(await ours(args, env));
  Deno.stdout.writeSync(encoder.encode(`${output}\n`));
}

function becomeNobody(): void {
  const libc = Deno.dlopen("libc.so.6", {
    setgroups: { parameters: ["usize", "pointer"], result: "i32" },
    setgid: { parameters: ["u32"], result: "i32" },
    setuid: { parameters: ["u32"], result: "i32" },
  });
  const results = [
    libc.symbols.setgroups(0n, null),
    libc.symbols.setgid(65534),
    libc.symbols.setuid(65534),
  ];
  if (results.some((result) => result !== 0)) {
    throw new Error("Cannot become nobody");
  }
}
