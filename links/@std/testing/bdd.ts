/** What a test runs. */
type Run = () => void | Promise<void>;

type Options = { ignore?: boolean };

interface Describe {
  (name: string, fn: () => void): void;
  (name: string, options: Options, fn: () => void): void;
}

interface It {
  (name: string, fn: Run): void;
  (name: string, options: Options, fn: Run): void;
}

type Test = Omit<Deno.TestDefinition, "permissions">;

/** The tests of the group that is being described. */
let group: Test[] | undefined;

function register(
  name: string,
  { ignore = false }: Options,
  fn: Test["fn"],
): void {
  const test = {
    name,
    ignore,
    fn,
    // Deno's default since 2.8.
    sanitizeOps: false,
    sanitizeResources: false,
  };
  if (group === undefined) Deno.test(test);
  else group.push(test);
}

/** A group of tests: one runs after the other. */
export const describe: Describe = (
  name: string,
  a: Options | (() => void),
  b?: () => void,
): void => {
  const [options, fn] = typeof a === "function" ? [{}, a] : [a, b!];
  const outer = group;
  const tests: Test[] = [];
  group = tests;
  try {
    fn();
  } finally {
    group = outer;
  }
  register(name, options, async (context) => {
    for (const test of tests) await context.step(test);
  });
};

/** A test. */
export const it: It = (name: string, a: Options | Run, b?: Run): void => {
  if (typeof a === "function") register(name, {}, () => a());
  else register(name, a, () => b!());
};
