/** Measuring by turns, so that what changes on the machine meanwhile happens to all. */

/** Something that is measured: it does so many cycles, and tells how long each took. */
export interface Contender {
  /** The column of the table. */
  readonly name: string;
  /** How many cycles a round has: few of what is slow. */
  readonly cycles: number;
  /** Cycles before the first round. V8 needs some thousand to make calls of C fast. */
  readonly warmUp?: number;
  /** Does cycles: nanoseconds of each, or the negative error number of one that failed. */
  run(cycles: number): Promise<number[]>;
}

/** What was measured of one contender: microseconds, or whatever the row says. */
export interface Sample {
  median: number;
  p99: number;
  least: number;
  most: number;
  count: number;
  failures: number;
  /** How often each error number, without its sign. */
  errors?: Record<number, number>;
}

/** The median of some numbers. */
export function median(numbers: readonly number[]): number {
  return quantile([...numbers].sort((a, b) => a - b), 0.5);
}

function quantile(sorted: readonly number[], share: number): number {
  const at = share * (sorted.length - 1);
  const low = sorted[Math.floor(at)] ?? NaN;
  const high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - Math.floor(at));
}

/** Sums up numbers; failed ones are counted only. */
export function summary(values: readonly number[], failures = 0): Sample {
  const sorted = [...values].sort((a, b) => a - b);
  return {
    median: quantile(sorted, 0.5),
    p99: quantile(sorted, 0.99),
    least: sorted[0] ?? NaN,
    most: sorted.at(-1) ?? NaN,
    count: values.length,
    failures,
  };
}

/** The same of what a contender answered, in microseconds. */
export function sampleOf(nanoseconds: readonly number[]): Sample {
  const done = nanoseconds.filter((value) => value >= 0);
  const errors: Record<number, number> = {};
  for (const value of nanoseconds) {
    if (value < 0) errors[-value] = (errors[-value] ?? 0) + 1;
  }
  const failures = nanoseconds.length - done.length;
  return {
    ...summary(done.map((value) => value / 1000), failures),
    ...(failures > 0 && { errors }),
  };
}

/** All contenders in turn, round after round: what each took, by name. */
export async function alternate(
  contenders: readonly Contender[],
  rounds: number,
): Promise<Record<string, Sample>> {
  for (const { run, warmUp = 1 } of contenders) await run(warmUp);
  const answers = contenders.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    // Another one begins each time: nobody always comes after the slowest.
    for (let turn = 0; turn < contenders.length; turn++) {
      const index = (round + turn) % contenders.length;
      const { run, cycles } = contenders[index]!;
      answers[index]!.push(...await run(cycles));
    }
  }
  return Object.fromEntries(
    contenders.map(({ name }, index) => [name, sampleOf(answers[index]!)]),
  );
}
