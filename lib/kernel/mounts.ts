/** The tables of mounts in `/proc`. */
import { deviceNumber } from "../sys/libc.ts";

/** A line of `mountinfo`. */
export interface Mount {
  /** The device number of its file system. */
  readonly device: number;
  /** Where it is mounted. */
  readonly target: string;
  /** The options of the mount itself: `ro`, `nodev` … */
  readonly options: string[];
  /** The type of the file system. */
  readonly type: string;
  /** What was mounted, as it was named. */
  readonly source: string;
}

/** The lines of `/proc/<pid>/mountinfo`: proc(5). */
export function parseMounts(text: string): Mount[] {
  return text.split("\n").filter((line) => line !== "").map((line) => {
    const fields = line.split(" ");
    const separator = fields.indexOf("-");
    const [major, minor] = fields[2]!.split(":").map(Number);
    return {
      device: deviceNumber(major!, minor!),
      target: unescapeOctal(fields[4]!),
      options: fields[5]!.split(","),
      type: fields[separator + 1] ?? "",
      source: unescapeOctal(fields[separator + 2] ?? ""),
    };
  });
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Blanks, newlines and backslashes stand as `\040` in the tables of `/proc`. */
export function unescapeOctal(text: string): string {
  if (!text.includes("\\")) return text;
  const bytes: number[] = [];
  const parts = text.split(/\\([0-7]{3})/);
  parts.forEach((part, index) => {
    if (index % 2 === 1) bytes.push(parseInt(part, 8));
    else bytes.push(...encoder.encode(part));
  });
  return decoder.decode(new Uint8Array(bytes));
}
