// Durations and sizes as people write them: '30m', '4Gi'.
import { ValidationError } from './errors.ts';

/** Milliseconds, or a number with a unit: `250ms`, `30s`, `15m`, `2h`, `7d`. */
export type Duration = number | string;
/** Bytes, or a number with a unit: `512Mi`, `4Gi`, `1.5G`. `Ki Mi Gi Ti` are powers of 1024, `k M G T` powers of 1000. */
export type Size = number | string;

const millisecondsIn = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } satisfies Record<
  string,
  number
>;
const bytesIn: Record<string, number> = {
  '': 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  t: 1e12,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
  ti: 2 ** 40,
};

/** A hundred years: far below the last moment that a date can name. */
const durationMsMax = 100 * 365 * millisecondsIn.d;

/** Throws ValidationError when it is no duration above zero, or more than a hundred years. `what` names it in the message. */
export function milliseconds(duration: Duration, what: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$/.exec(String(duration).trim());
  const result =
    typeof duration === 'number'
      ? duration
      : match
        ? Number(match[1]) * millisecondsIn[match[2] as keyof typeof millisecondsIn]
        : NaN;
  if (result > durationMsMax) {
    throw new ValidationError('invalid', `${what}: '${duration}' is too long`, {
      hint: 'The most is 100 years, which is 36500d.',
    });
  }
  if (result > 0) return Math.ceil(result);
  throw new ValidationError('invalid', `${what}: '${duration}' is not a duration`, {
    hint: "Write a number and its unit, e.g. '90s', '30m', '2h' or '7d'.",
  });
}

/** Throws ValidationError when it is no size above zero. */
export function bytes(size: Size, what: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?$/i.exec(String(size).trim());
  const result =
    typeof size === 'number'
      ? size
      : match
        ? Number(match[1]) * (bytesIn[(match[2] ?? '').toLowerCase()] ?? NaN)
        : NaN;
  if (Number.isFinite(result) && result >= 1) return Math.floor(result);
  throw new ValidationError('invalid', `${what}: '${size}' is not a size`, {
    hint: "Write a number of bytes or one with a unit, e.g. '512Mi' or '4Gi'.",
  });
}
