/** Rewrites errors of the library in the words of the command line. */
import { checkPath } from "../arguments.ts";
import { LoopError, quote } from "../errors.ts";
import { EACCES, EPERM } from "../sys/errno.ts";
import { readText } from "../sys/sysfs.ts";

const RUN_AS_ROOT = "run it as root";

/** Names in the module, and the corresponding options or commands. */
const WORDS: readonly [name: RegExp, words: string][] = [
  [/\breadOnly: true\b/g, "-r (--read-only)"],
  [/\boverlap: "allow"/g, "--overlap"],
  [/: it is a regular file$/, "$&; loopdev find prints the devices of a file"],
  [/; LoopControl\.add\(\d+\) adds it$/, ""], // attach adds it by itself
  // A relative name that is not UTF-8.
  [/"\/proc\/self\/cwd\//g, '"'],
  [/\battach\(\{ nodes \}\)/g, "loopdev attach --nodes"],
  [/\battach\(\)/g, "loopdev attach"],
  [/\blist\(\) and find\(\)/g, "loopdev list and find"],
  [/; use setFd\(\) and setStatus\(\)$/, ""],
  [/\buse Loop\.setFd\(\) and setStatus\(\), or /, "use "],
  [/\bonly to a device opened readOnly\b/g, "only with -r (--read-only)"],
  [/\bchoose one with partition\b/g, "choose one with --partition"],
  [
    /\brecognized on it; type names one\b/g,
    "recognized on it; --type names one",
  ],
  [/\bblockSize: (\d+) \(-b \d+\)/g, "-b $1"],
  [/root and the group of the node may open it/g, RUN_AS_ROOT],
  [/ already shows some of its bytes$/, "$&; use that device, or detach it"],
];

/**
 * Returns an error that names a file instead of its device, which is gone again when the
 * user reads the message.
 */
export function inWordsOfFile(
  error: unknown,
  device: string,
  file: string | URL,
): unknown {
  if (error instanceof LoopError) {
    const name = quote(checkPath(file).text);
    error.message = error.message.replaceAll(quote(device), name);
  }
  return error;
}

/** Rewrites a message of the library for the command line. */
export function inWords(message: string): string {
  return WORDS.reduce(
    (text, [name, words]) => text.replace(name, words),
    message,
  );
}

/** Returns the message of an error, with advice if permissions are missing. */
export function messageOf(error: Error): string {
  const message = inWords(error.message);
  const isForbidden = error instanceof LoopError &&
    (error.errno === EACCES || error.errno === EPERM);
  if (!isForbidden) return message;
  const hasHint = !error.message.endsWith(`(${error.code})`);
  if (isRoot()) return hasHint ? message : `${message}: see loopdev doctor`;
  if (message.includes(RUN_AS_ROOT)) return message;
  return `${message}${hasHint ? ", or" : ":"} ${RUN_AS_ROOT}`;
}

/** Returns `true` if this process runs as root. `Deno.uid` would need a permission. */
function isRoot(): boolean {
  const status = readText("/proc/self/status");
  // The effective user is the second of four.
  return typeof status === "string" && /^Uid:\t\d+\t0\t/m.test(status);
}
