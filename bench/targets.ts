/** Compares the results with the targets. */
import type { Figure, Row } from "./result.ts";

/** A target and its result, if it was measured. */
export interface Target {
  readonly what: string;
  readonly wanted: string;
  readonly measured: string;
  readonly met: boolean;
}

const MILLISECOND = 1000;

/** Returns all targets for which there are results. */
export function targets(rows: Row[], figures: Figure[]): Target[] {
  const found: Target[] = [];
  const row = (id: string): Row | undefined =>
    rows.find((row) => row.id === id);
  const time = (id: string, name: string): number | undefined =>
    row(id)?.samples[name]?.median;

  const check = (
    what: string,
    [wanted, isMet]: [string, (value: number) => boolean],
    [value, unit]: [number | undefined, string],
  ): void => {
    if (value === undefined || Number.isNaN(value)) return;
    const measured = `${value.toPrecision(value < 100 ? 3 : 4)} ${unit}`;
    found.push({ what, wanted, measured: measured.trim(), met: isMet(value) });
  };
  const atMost = (limit: number, unit: string) =>
    [
      `at most ${limit} ${unit}`.trim(),
      (value: number) => value <= limit,
    ] as [string, (value: number) => boolean];
  const atLeast = (limit: number, unit: string) =>
    [
      `at least ${limit} ${unit}`,
      (value: number) => value >= limit,
    ] as [string, (value: number) => boolean];
  const ratio = (
    id: string,
    name: string,
    other: string,
  ): number | undefined => {
    const [value, reference] = [time(id, name), time(id, other)];
    return value === undefined || reference === undefined
      ? undefined
      : value / reference;
  };

  /** The fastest cycles exclude other load on the machine. */
  const fastest = (id: string): string => {
    const { loopdev, C } = row(id)?.samples ?? {};
    return loopdev === undefined || C === undefined
      ? ""
      : `× (fastest cycles ${(loopdev.least / C.least).toPrecision(3)} ×)`;
  };

  const memory = "attach memory";
  for (const place of ["memory", "disk"]) {
    for (const overlap of ["", " allow"]) {
      const id = `attach ${place}${overlap}`;
      check(
        `attach and detach, ${place === "memory" ? "tmpfs" : "disk"}${
          overlap && ', `overlap: "allow"`'
        }, against C`,
        atMost(1.35, "×"),
        [ratio(id, "loopdev", "C"), fastest(id)],
      );
    }
  }
  check(
    "attach and detach, faster than losetup",
    atLeast(30, "×"),
    [ratio(memory, "losetup", "loopdev"), "×"],
  );
  check(
    "attach and detach, faster than the original's calls",
    atLeast(200, "×"),
    [ratio(memory, "original", "loopdev"), "×"],
  );
  for (const count of [64, 256, 512]) {
    check(
      `list of ${count} devices, against C`,
      atMost(1.2, "×"),
      [ratio(`list ${count}`, "loopdev", "C"), "×"],
    );
  }
  check(
    "mount and unmount an attached ext4, faster than mount(8) and umount(8)",
    atLeast(3, "×"),
    [ratio("mount", "losetup", "loopdev"), "×"],
  );
  check(
    "`run --mount`, against five programs",
    atMost(1, "×"),
    [ratio("run --mount", "loopdev", "losetup"), "×"],
  );
  const [few, many] = [
    time("list 64", "loopdev"),
    time("list 512", "loopdev"),
  ];
  if (few !== undefined && many !== undefined) {
    check(
      "time per device in a list of 512, against one of 64",
      atMost(1.2, "×"),
      [many / 512 / (few / 64), "×"],
    );
  }
  for (const count of [8, 32, 128]) {
    const { loopdev, C } = row(`processes ${count}`)?.samples ?? {};
    check(
      `${count} processes at once: failures`,
      atMost(0, ""),
      [loopdev?.failures, ""],
    );
    check(
      `${count} processes at once: the 99th percentile, against C`,
      atMost(2, "×"),
      [loopdev && C && loopdev.p99 / C.p99, "×"],
    );
  }
  for (const { id, title, samples } of rows) {
    if (!id.startsWith("stop")) continue;
    check(
      `longest stop of the event loop: ${title}`,
      atMost(50, "ms"),
      [samples["loopdev"]!.median / MILLISECOND, "ms"],
    );
  }
  const [empty, imported] = [time("start", "empty"), time("start", "import")];
  if (empty !== undefined && imported !== undefined) {
    check(
      "import of the module, over an empty program",
      atMost(8, "ms"),
      [(imported - empty) / MILLISECOND, "ms"],
    );
  }
  check(
    "functions of C looked up at import",
    atMost(16, ""),
    [figures.find(({ id }) => id === "symbols")?.value, ""],
  );
  const starts: [name: string, title: string, limit: number][] = [
    ["version", "`loopdev --version`", 1.3],
    ["list", "`loopdev list` with 8 devices", 1.6],
    ["losetup -l", "`losetup -l` with 8 devices", 1.6],
  ];
  for (const [name, title, limit] of starts) {
    check(
      `${title}, as installed, against an empty program`,
      atMost(limit, "×"),
      [ratio("start", name, "empty"), "×"],
    );
  }
  return found;
}
