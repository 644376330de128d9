// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

export class AssertionError extends Error {}
export function assert(value: unknown, message?: string): asserts value;
export function assertEquals<T>(
  actual: T,
  expected: T,
  message?: string,
): void;
export function assertNotEquals<T>(
  actual: T,
  expected: T,
  message?: string,
): void;
export function assertStrictEquals<T>(
  actual: unknown,
  expected: T,
  message?: string,
): asserts actual is T;
export function assertExists<T>(
  actual: T,
  message?: string,
): asserts actual is NonNullable<T>;
export function assertGreater<T>(
  actual: T,
  expected: T,
  message?: string,
): void;
export function assertGreaterOrEqual<T>(
  actual: T,
  expected: T,
  message?: string,
): void;
export function assertLess<T>(actual: T, expected: T, message?: string): void;
export function assertLessOrEqual<T>(
  actual: T,
  expected: T,
  message?: string,
): void;
export function assertMatch(
  actual: string,
  expected: RegExp,
  message?: string,
): void;
export function assertNotMatch(
  actual: string,
  expected: RegExp,
  message?: string,
): void;
export function assertStringIncludes(
  actual: string,
  expected: string,
  message?: string,
): void;
export function assertInstanceOf<E>(
  actual: unknown,
  // deno-lint-ignore no-explicit-any
  expected: abstract new (...args: any[]) => E,
  message?: string,
): asserts actual is E;
export function assertThrows(fn: () => unknown, message?: string): unknown;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: ErrorClass<E>,
  messageIncludes?: string,
  message?: string,
): E;
export function assertRejects(
  fn: () => PromiseLike<unknown>,
  message?: string,
): Promise<unknown>;
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: ErrorClass<E>,
  messageIncludes?: string,
  message?: string,
): Promise<E>;
export function fail(message?: string): never;
