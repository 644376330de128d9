/** Parses sizes like losetup. */
import { EINVAL, ERANGE } from "../sys/errno.ts";
import type { ByteString } from "./byte_string.ts";
import { systemFailure } from "./failure.ts";

const MAX = 2n ** 64n - 1n;
const UNITS = "KMGTPEZY";

/**
 * Parses a number of bytes: decimal, octal (`010`) or hexadecimal (`0x1000`), with `K`
 * or `KiB` (1024), `KB` (1000) and so on, and a fraction before such a unit.
 *
 * @param what The beginning of the error message.
 */
export function parseSize(text: ByteString, what: string): bigint {
  const failure = (errno: number) => systemFailure(`${what}: '${text}'`, errno);
  const [, digits, fraction, unit, system] =
    // Zeros alone do not count as a fraction, and another one may follow them.
    /^[ \t\n\v\f\r]*\+?(0x[\da-f]+|\d+)((?:\.0*)*(?:\.\d+)?)(?:([kmgtpezy])(iB|ib|B|b)?)?$/i
      .exec(text) ?? [];
  if (
    digits === undefined || (unit === undefined && fraction !== "") ||
    /^i/.test(system ?? "") !== /^i/i.test(system ?? "")
  ) throw failure(EINVAL);
  const isOctal = /^0\d/.test(digits);
  if (isOctal && /[89]/.test(digits)) throw failure(EINVAL);
  const whole = BigInt(isOctal ? `0o${digits}` : digits);
  if (whole > MAX) throw failure(ERANGE);

  const base = /^b/i.test(system ?? "") ? 1000n : 1024n;
  const power = unit === undefined ? 0 : UNITS.indexOf(unit.toUpperCase()) + 1;
  const scale = base ** BigInt(power);
  const size = whole * scale + partOf(scale, fraction!);
  if (size > MAX) throw failure(ERANGE);
  return size;
}

/**
 * Computes the fraction of a unit as util-linux does, digit by digit, because existing
 * images were made with these numbers. Each digit `d` counts as the unit divided by the
 * integer part of `10^n / d`, and a last digit 1 followed only by zeros counts ten
 * times.
 */
function partOf(scale: bigint, fraction: string): bigint {
  const [, zeros, digits] = /^([.0]*)(\d*)$/.exec(fraction)!;
  let divisor = 10n ** BigInt(Math.max(1, digits!.length));
  if (/^10+$/.test(digits!)) divisor /= 10n;
  divisor *= 10n ** BigInt(zeros!.replaceAll(".", "").length);
  let part = 0n;
  for (const digit of [...digits!].reverse().map(BigInt)) {
    if (digit !== 0n) part += scale / (divisor / digit);
    divisor /= 10n;
  }
  return part;
}
