/** The command line inside of the test, and what it prints. */

/** The exit status of a command, and what was printed meanwhile, to either stream. */
export async function printed(
  act: () => number | Promise<number>,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const streams = { stdout: "", stderr: "" };
  const { error } = console;
  const { writeSync } = Deno.stdout;
  const decoder = new TextDecoder();
  console.error = (line: string) => streams.stderr += `${line}\n`;
  Deno.stdout.writeSync = (bytes) => {
    streams.stdout += decoder.decode(bytes, { stream: true });
    return bytes.length;
  };
  try {
    return { code: await act(), ...streams };
  } finally {
    console.error = error;
    Deno.stdout.writeSync = writeSync;
  }
}
