/** The command line inside of the test, and what it prints. */

/** The exit status of a command, and what was printed meanwhile, to either stream. */
export async function printed(
  act: () => number | Promise<number>,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const streams = { log: "", error: "" };
  const { log, error } = console;
  console.log = (line: string) => streams.log += `${line}\n`;
  console.error = (line: string) => streams.error += `${line}\n`;
  try {
    const code = await act();
    return { code, stdout: streams.log, stderr: streams.error };
  } finally {
    Object.assign(console, { log, error });
  }
}
