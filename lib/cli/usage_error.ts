/** Error for a wrong command line. Nothing was changed. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}
