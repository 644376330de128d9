/** What the benchmark finds. */
import type { Sample } from "./measure.ts";

/** One thing that was measured, of each contender. */
export interface Row {
  /** By what the targets find it: `attach tmpfs`. */
  readonly id: string;
  readonly title: string;
  /** Of the samples: microseconds, or something a second. */
  readonly unit: "µs" | "MB/s" | "IOPS";
  readonly samples: Record<string, Sample>;
  /** System calls of one cycle, of each contender whose calls were counted. */
  readonly calls?: Record<string, number>;
}

/** A figure that is none of time. */
export interface Figure {
  readonly id: string;
  readonly value: number;
}

/** What a case gives. */
export interface Findings {
  readonly rows: Row[];
  readonly figures?: Figure[];
}
