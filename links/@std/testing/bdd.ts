import * as runner from "node:test";

/** What a test or a hook runs. */
type Run = () => void | Promise<void>;

type Options = { ignore?: boolean };

function skipping({ ignore = false }: Options): { skip: boolean } {
  return { skip: ignore };
}

interface Describe {
  (name: string, fn: () => void): void;
  (name: string, options: Options, fn: () => void): void;
}

interface It {
  (name: string, fn: Run): void;
  (name: string, options: Options, fn: Run): void;
}

/** A group of tests. */
export const describe: Describe = (
  name: string,
  a: Options | (() => void),
  b?: () => void,
): void => {
  if (typeof a === "function") runner.describe(name, a);
  else runner.describe(name, skipping(a), b!);
};

/** A test. */
export const it: It = (name: string, a: Options | Run, b?: Run): void => {
  if (typeof a === "function") runner.it(name, a);
  else runner.it(name, skipping(a), b!);
};

/** Runs before the tests of a group. */
export const beforeAll = (fn: Run): void => runner.before(fn);
/** Runs after the tests of a group. */
export const afterAll = (fn: Run): void => runner.after(fn);
/** Runs before each test of a group. */
export const beforeEach = (fn: Run): void => runner.beforeEach(fn);
/** Runs after each test of a group. */
export const afterEach = (fn: Run): void => runner.afterEach(fn);
