// Values of query strings, as schemas that the route tables share.
import { z } from 'zod';

/** In a query string everything is text; the description shows what it stands for. */
const shownAs = (type: 'integer' | 'boolean', minimum?: number) => ({
  type,
  minimum,
  pattern: undefined,
  enum: undefined,
});
const digits = (min: number, max: number) =>
  z
    .string()
    .regex(/^(0|[1-9]\d{0,15})$/, 'must be a whole number')
    .transform(Number)
    .refine((it) => it >= min && it <= max, `must be from ${min} to ${max}`)
    .meta(shownAs('integer', min));
export const decimal = (max: number) => digits(0, max);
export const positive = (max: number) => digits(1, max);
export const flag = z
  .enum(['true', 'false', '1', '0'])
  .transform((it) => it === 'true' || it === '1')
  .meta(shownAs('boolean'));
