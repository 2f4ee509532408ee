// The calls that a gate knows. Each file of calls adds its own; what none has added is not found.
import { Failure } from '../lib/failure.ts';
import type { Exchange } from './exchange.ts';
import type { DockerGate } from './gate.ts';

export type Handler = (this: DockerGate, it: Exchange) => Promise<void>;

const routes: [method: string, pattern: RegExp, handler: Handler][] = [];

export function route(methods: string, pattern: string, handler: Handler): void {
  const source = pattern.replaceAll('{name}', '([^/]+)').replaceAll('{image}', '(.+)');
  for (const method of methods.split('|')) routes.push([method, new RegExp(`^${source}$`), handler]);
}

export function find(method: string, path: string): { handler: Handler; params: string[] } {
  for (const [wanted, pattern, handler] of routes) {
    const match = wanted === method ? pattern.exec(path) : null;
    if (match) return { handler, params: match.slice(1) };
  }
  throw new Failure('not-found', `${method} ${path.slice(0, 200)}: there is no such call for a sandbox`);
}

export function refused(methods: string, pattern: string, why: string, hint?: string): void {
  route(methods, pattern, async () => {
    throw new Failure('permission', why, hint === undefined ? {} : { hint });
  });
}
