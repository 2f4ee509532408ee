// Whether a sandbox that was made beforehand is what a request would have got. Pure. What is unknown here makes it fit no pool, so a wish that is added
// to requests later is never lost.
import { isIsolating, isolationExtension } from '../contract/admin.ts';
import { limitsOf, type PoolTemplate } from '../contract/pool.ts';
import type { CreateRequest } from '../sandbox/sandbox.ts';

/** Looked at below, or given to a sandbox when it is handed out. */
const known: ReadonlySet<string> = new Set<keyof CreateRequest>([
  'image',
  'platform',
  'runtime',
  'limits',
  'pool',
  'project',
  'entrypoint',
  'env',
  'metadata',
  'extensions',
  'timeoutMs',
  'renewOnAccessMs',
  'networkPolicy',
  'byOwner',
]);

/** The wishes that no sandbox can be given any more once it runs. */
export function wishesBeyond(request: CreateRequest): string[] {
  const beyond = Object.entries(request)
    .filter(([key, value]) => !known.has(key) && !isNothing(key, value))
    .map(([key]) => key);
  return isIsolating(request.extensions) ? [...beyond, `extensions.${isolationExtension}`] : beyond;
}

function isNothing(key: string, value: unknown): boolean {
  if (value === undefined || value === null || value === false) return true;
  // What is ready is made of what is there.
  if (key === 'pull') return value !== 'always';
  return Array.isArray(value) && value.length === 0;
}

/** `runtime`: where the request is to be. */
export function fits(
  request: CreateRequest,
  runtime: string,
  pool: { template: PoolTemplate; runtime: string },
): boolean {
  const { image, platform, limits } = request;
  return (
    runtime === pool.runtime &&
    image === pool.template.image.uri &&
    same(platform, pool.template.platform) &&
    same(limits, limitsOf(pool.template)) &&
    wishesBeyond(request).length === 0
  );
}

/** Of flat objects. */
function same(one: object | undefined, other: object | undefined): boolean {
  const text = (it: object = {}) =>
    JSON.stringify(Object.entries(it).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)));
  return text(one) === text(other);
}
