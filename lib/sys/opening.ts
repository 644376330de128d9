/**
 * Configures the lookup of symbols of the C library, which takes most of the time of a
 * short program.
 */
export const opening: { onUse: boolean } = {
  /**
   * `true` to look up few symbols at import, and the others on first use. Only for
   * programs, because Deno's sanitizers report a library opened during a test as a
   * leak.
   */
  onUse: false,
};
