/** Measures contenders in turns, so that changes on the machine affect all of them. */

/** A contender: runs cycles, and reports the time of each. */
export interface Contender {
  /** Its column in the table. */
  readonly name: string;
  /** Number of cycles in a round, low for slow contenders. */
  readonly cycles: number;
  /**
   * Cycles before the first round. V8 needs a few thousand to optimize calls of C
   * functions.
   */
  readonly warmUp?: number;
  /**
   * Runs cycles. Returns the nanoseconds of each, or the negative error number of a
   * failed one.
   */
  run(cycles: number): Promise<number[]>;
}

/** Results of one contender, in microseconds or the unit of the row. */
export interface Sample {
  median: number;
  p99: number;
  least: number;
  most: number;
  count: number;
  failures: number;
  /** Number of failures by positive error number. */
  errors?: Record<number, number>;
}

/** Returns the median of some numbers. */
export function median(numbers: readonly number[]): number {
  return quantile([...numbers].sort((a, b) => a - b), 0.5);
}

function quantile(sorted: readonly number[], share: number): number {
  const at = share * (sorted.length - 1);
  const low = sorted[Math.floor(at)] ?? NaN;
  const high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - Math.floor(at));
}

/** Summarizes values; failures are only counted. */
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

/** Summarizes the times of a contender in microseconds. */
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

/** Runs all contenders in turn, round after round. Returns the times by name. */
export async function alternate(
  contenders: readonly Contender[],
  rounds: number,
): Promise<Record<string, Sample>> {
  for (const { run, warmUp = 1 } of contenders) await run(warmUp);
  const answers = contenders.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    // Each round starts with another contender, so that none always follows the
    // slowest.
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
