/** Data types for the results of the benchmark. */
import type { Sample } from "./measure.ts";

/** One measurement, for each contender. */
export interface Row {
  /** Key by which the targets find it: `attach tmpfs`. */
  readonly id: string;
  readonly title: string;
  /** Unit of the samples. */
  readonly unit: "µs" | "MB/s" | "IOPS";
  readonly samples: Record<string, Sample>;
  /** System calls in one cycle, for each contender whose calls were counted. */
  readonly calls?: Record<string, number>;
}

/** A figure that is not a time. */
export interface Figure {
  readonly id: string;
  readonly value: number;
}

/** Results of a case. */
export interface Findings {
  readonly rows: Row[];
  readonly figures?: Figure[];
}
