/** When the symbols of the C library are looked up, which takes most of the time of a short program. */
export const opening: { onUse: boolean } = {
  /**
   * Few at import, and the others when one of them is used. For programs alone: opening a
   * library during a test looks like a leak to Deno's sanitizers.
   */
  onUse: false,
};
