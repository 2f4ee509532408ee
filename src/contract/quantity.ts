// Resource limits as OpenSandbox's clients write them ("500m", "2Gi", "1"), read strictly: what cannot be read is refused, never left unlimited.
import { Failure } from '../lib/failure.ts';
import type { Limits } from './sandbox.ts';

const bytesPer: Record<string, number> = {
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

/** Docker's own least; less starts no process at all. */
const memoryBytesMin = 6 * 1024 * 1024;
/** More than any machine has, and exact in a number. */
const bytesMax = 4096 * 2 ** 40;
/** The agent and the walls take about eight; a limit below this would hold up the first command. */
const pidsMin = 16;

function refuse(key: string, text: string, expected: string, field: string): Failure {
  return new Failure('invalid', `${field}.${key}: ${JSON.stringify(text.slice(0, 64))} is not ${expected}`);
}

/** Where a quantity stands that is no part of another field. */
const limitsField = 'resourceLimits';

/** Whole bytes from a whole number with a decimal (k, M, G, T, with or without B) or binary (Ki, Mi, Gi, Ti) unit. */
export function parseBytes(key: string, text: string, field: string = limitsField): number {
  const match = /^(\d{1,21})(?:([kmgt])(i?)b?|b)?$/i.exec(text.trim());
  const bytes = match
    ? Number(match[1]) * (bytesPer[`${match[2] ?? ''}${match[3] ?? ''}`.toLowerCase()] ?? Number.NaN)
    : Number.NaN;
  if (!(bytes > 0)) throw refuse(key, text, 'a size above zero such as "512Mi", "2Gi" or "500M"', field);
  if (bytes > bytesMax) throw refuse(key, text, 'at most 4096Ti', field);
  return bytes;
}

/** Cores, from "0.5", "2" or thousandths as "500m". */
export function parseCpu(text: string, field: string = limitsField): number {
  const trimmed = text.trim();
  const cores = /^\d{1,7}m$/.test(trimmed)
    ? Number(trimmed.slice(0, -1)) / 1000
    : /^\d{1,4}(\.\d{1,3})?$/.test(trimmed)
      ? Number(trimmed)
      : Number.NaN;
  if (!(cores >= 0.01 && cores <= 4096))
    throw refuse('cpu', text, 'a number of cores from 10m to 4096, such as "500m", "0.5" or "2"', field);
  return cores;
}

function parseCount(
  key: string,
  text: string,
  { least, most, field }: { least: number; most: number; field: string },
): number {
  const count = /^\d{1,10}$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (!(count >= least && count <= most))
    throw refuse(key, text, `a whole number from ${least} to ${most}`, field);
  return count;
}

/** Throws Failure('invalid') naming the key. Keys: cpu, memory, gpu, pids, and disk or ephemeral-storage. */
export function parseLimits(quantities: Record<string, string>, field: string = limitsField): Limits {
  const limits: Limits = {};
  for (const [key, text] of Object.entries(quantities)) {
    switch (key) {
      case 'cpu':
        limits.cpu = parseCpu(text, field);
        break;
      case 'memory':
        limits.memoryBytes = parseBytes(key, text, field);
        if (limits.memoryBytes < memoryBytesMin) throw refuse(key, text, 'at least 6Mi', field);
        break;
      case 'gpu':
        limits.gpu = text.trim() === 'all' ? 'all' : parseCount(key, text, { least: 1, most: 64, field });
        break;
      case 'pids':
        limits.pids = parseCount(key, text, { least: pidsMin, most: 4_194_304, field });
        break;
      case 'disk':
      case 'ephemeral-storage':
        if (limits.diskBytes !== undefined)
          throw new Failure('invalid', `${field}: disk and ephemeral-storage are the same; give one`);
        limits.diskBytes = parseBytes(key, text, field);
        break;
      default:
        throw new Failure(
          'invalid',
          `${field}: unknown resource ${JSON.stringify(key)}; there are cpu, memory, gpu, pids and disk (or ephemeral-storage)`,
        );
    }
  }
  return limits;
}
