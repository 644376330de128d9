/**
 * Recognizes damaged superblocks: `recognize_fuzz.ts [COUNT [SEED]]`.
 *
 * Plants signatures of file systems among random bytes. Exits with status 1 if
 * recognition throws, reads too much or returns anything but a plain line.
 */
import { recognize } from "../../lib/mounting/recognize.ts";

const MARKS: readonly [offset: number, mark: string][] = [
  [0, "LUKS\xba\xbe\x00\x02"],
  [512, "LABELONE"],
  [536, "LVM2 001"],
  [4096, "\xfc\x4e\x2b\xa9\x01\x00\x00\x00"],
  [0, "XFSB"],
  [65600, "_BHRfS_M"],
  [0, "hsqs"],
  [1024, "\xe2\xe1\xf5\xe0"],
  [1024, "\x10\x20\xf5\xf2"],
  [3, "EXFAT   "],
  [3, "NTFS    "],
  [4086, "SWAPSPACE2"],
  [1080, "\x53\xef"],
  [32768, "JFS1"],
  [65588, "ReIsEr2Fs"],
  [1030, "\x34\x34"],
  [32769, "NSR02"],
  [131072, "\x02\x00"],
  [32768, "\x01CD001"],
  [34816, "\x02CD001"],
  [510, "\x55\xaa"],
  [54, "FAT16   "],
  [82, "FAT32   "],
  [11, "\x00\x02\x04\x01\x00\x02"],
  [1040, "\x7f\x13"],
];

/** Maximum number of bytes to read from a disk. */
const READ_LIMIT = 512 << 10;

/** Returns pseudorandom numbers from a seed (mulberry32). */
function random(seed: number): (limit: number) => number {
  let state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b);
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 2 ** 32 * limit);
  };
}

const noise = new Uint8Array(256 << 10);
for (let at = 0; at < noise.length; at += 65536) {
  crypto.getRandomValues(noise.subarray(at, at + 65536));
}

function tryOne(seed: number): string {
  const below = random(seed);
  const size = [0, 511, 4096, 5000, 65536, 160 << 10][below(6)]!;
  const image = below(2) === 0
    ? new Uint8Array(size)
    : noise.slice(0, size).map((byte) => byte ^ (seed & 0xff));
  for (let count = 1 + below(4); count > 0; count--) {
    const [offset, mark] = MARKS[below(MARKS.length)]!;
    [...mark].forEach((character, index) => {
      if (offset + index < size) {
        image[offset + index] = character.charCodeAt(0);
      }
    });
  }
  for (let count = below(20); count > 0; count--) {
    image[below(Math.min(size, 2048))] = below(256);
  }
  let read = 0;
  const found = recognize({
    size,
    read(offset, length): Uint8Array {
      read += length;
      if (read > READ_LIMIT) throw new Error("it reads too much");
      if (!(offset >= 0 && offset + length <= size)) {
        throw new Error(`it reads ${length} bytes at ${offset}`);
      }
      return image.slice(offset, offset + length);
    },
  });
  for (const [key, value] of Object.entries(found ?? {})) {
    if (typeof value !== "string" || value === "" || value.includes("\0")) {
      throw new Error(`${key}: ${JSON.stringify(value)}`);
    }
  }
  return found?.type ?? "nothing";
}

function main(args: string[]): number {
  const count = Number(args[0] ?? 100_000);
  const seed = Number(args[1] ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`seed ${seed}, ${count} disks`);
  const outcomes = new Map<string, number>();
  for (let index = 0; index < count; index++) {
    try {
      const outcome = tryOne(seed + index);
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    } catch (error) {
      console.error(`seed ${seed + index}: ${(error as Error).stack}`);
      return 1;
    }
  }
  for (const [outcome, times] of [...outcomes].sort()) {
    console.log(`${outcome}: ${times}`);
  }
  return 0;
}

if (import.meta.main) Deno.exit(main(Deno.args));
