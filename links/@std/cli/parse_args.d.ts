export interface ParseOptions {
  alias?: Record<string, string | readonly string[]>;
  boolean?: readonly string[];
  string?: readonly string[];
  negatable?: readonly string[];
  collect?: readonly string[];
  default?: Record<string, unknown>;
  "--"?: boolean;
  stopEarly?: boolean;
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}
export type Args = Record<string, unknown> & {
  _: Array<string | number>;
  "--"?: string[];
};
export function parseArgs(
  args: readonly string[],
  options?: ParseOptions,
): Args;
