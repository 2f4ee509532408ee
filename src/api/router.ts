// Finds what a request's path means: a route of the table, a port of a guest, or a part of OpenSandbox that is not here.
// Who may call it is decided afterwards, from what was found, so that no second reading of the path can differ.

import type { Area } from '../contract/errors.ts';
import { egressPort, execdPort } from '../contract/opensandbox.ts';
import { absent, fullPathOf, type Never, type OperationId, type Route, routes } from '../contract/routes.ts';
import { placeOf } from '../contract/worker.ts';
import { Failure } from '../lib/failure.ts';
import { Refusal } from './refusal.ts';

export type Target =
  | { kind: 'route'; id: OperationId; route: Route; params: Record<string, string> }
  /** `path` is as in the request line, from the slash behind the port on; `prefix` is what stands before it. */
  | { kind: 'port'; sandboxId: string; port: string; prefix: string; path: string }
  | { kind: 'absent'; area: Route['area']; sandboxId: string | undefined; what: string; never?: Never };

interface Branch {
  literals: Map<string, Branch>;
  parameter: { name: string; branch: Branch } | undefined;
  byMethod: Map<string, OperationId>;
}

const newBranch = (): Branch => ({ literals: new Map(), parameter: undefined, byMethod: new Map() });

function plant(): Branch {
  const root = newBranch();
  for (const [id, it] of Object.entries(routes) as [OperationId, Route][]) {
    let branch = root;
    for (const segment of fullPathOf(it).split('/').slice(1)) {
      const name = /^\{(\w+)\}$/.exec(segment)?.[1];
      if (name !== undefined) {
        branch.parameter ??= { name, branch: newBranch() };
        branch = branch.parameter.branch;
        continue;
      }
      const next = branch.literals.get(segment) ?? newBranch();
      branch.literals.set(segment, next);
      branch = next;
    }
    branch.byMethod.set(it.method, id);
  }
  return root;
}

const root = plant();

function descend(
  branch: Branch,
  segments: string[],
  at: number,
  params: string[],
): [Branch, string[]] | undefined {
  const segment = segments[at];
  if (segment === undefined) return branch.byMethod.size > 0 ? [branch, params] : undefined;
  const literal = branch.literals.get(segment);
  const found = literal && descend(literal, segments, at + 1, params);
  if (found || branch.parameter === undefined || segment === '') return found;
  return descend(branch.parameter.branch, segments, at + 1, [...params, branch.parameter.name, segment]);
}

/** Throws Failure('not-found') for paths unknown, and a 405 for a method that the path does not have. */
export function find(method: string, fullPath: string): Target {
  if (!fullPath.startsWith('/')) throw new Failure('invalid', 'the request target must be a path');
  const path = placePath(fullPath.startsWith('/v1/') ? fullPath.slice(3) : fullPath);
  const proxied = /^\/sandboxes\/([^/]+)\/proxy\/([^/]*)(.*)$/s.exec(path);
  if (proxied) {
    const [, id = '', port = '', rest = ''] = proxied;
    const nested = port === String(execdPort) ? /^\/proxy\/([^/]*)(.*)$/s.exec(rest) : undefined;
    const [, effective = '', inner = ''] = nested ?? [undefined, port, rest];
    // Through execd or not: what lies at this port is ours, and no server of the guest that listens there is ever asked.
    if (effective === String(egressPort))
      return routeAt(method, `/sandboxes/${id}/proxy/${egressPort}${inner}`, 'egress');
    if (effective !== String(execdPort) || nested) {
      const prefix = fullPath.slice(0, fullPath.length - inner.length);
      return {
        kind: 'port',
        sandboxId: decode(id),
        port: effective,
        prefix,
        path: inner === '' ? '/' : inner,
      };
    }
    const missing = absent.find((it) => it.area === 'execd' && it.path.test(rest));
    if (missing && !descend(root, path.split('/').slice(1), 0, []))
      return {
        ...{ kind: 'absent', area: 'execd', sandboxId: decode(id), what: missing.what },
        ...(missing.never && { never: missing.never }),
      };
  }
  const missing = absent.find((it) => it.area !== 'execd' && it.path.test(path));
  if (missing && !descend(root, path.split('/').slice(1), 0, []))
    return { kind: 'absent', area: missing.area, sandboxId: undefined, what: missing.what };
  return routeAt(method, path, 'request');
}

/** What lies below a worker's `proxy` is that of a sandbox, with the name of the worker's place for its id. */
function placePath(path: string): string {
  const [, id, rest] = /^\/workers\/([^/]+)(\/proxy\/.*)$/s.exec(path) ?? [];
  return id === undefined ? path : `/sandboxes/${encodeURIComponent(placeOf(decode(id)))}${rest}`;
}

function routeAt(method: string, path: string, area: Area): Target {
  const found = descend(root, path.split('/').slice(1), 0, []);
  if (found === undefined)
    throw new Refusal('not-found', `there is nothing at ${JSON.stringify(path.slice(0, 200))}`, {
      area,
      hint: 'See /openapi.json for every route.',
    });
  const [branch, raw] = found;
  const id = branch.byMethod.get(method === 'HEAD' ? 'GET' : method);
  if (id === undefined || (method === 'HEAD' && endless(id))) {
    const allow = [...branch.byMethod.keys()].join(', ');
    throw new Refusal('invalid', `${method} is not possible here; ${allow} is`, {
      area,
      status: 405,
      headers: { Allow: allow },
    });
  }
  const params: Record<string, string> = {};
  for (let at = 0; at < raw.length; at += 2) params[raw[at] ?? ''] = decode(raw[at + 1] ?? '');
  return { kind: 'route', id, route: routes[id], params };
}

/** There is no head of what never ends, or may not end. */
function endless(id: OperationId): boolean {
  const { endless = false, follow } = routes[id] as Route;
  return endless || follow !== undefined;
}

function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new Failure(
      'invalid',
      `${JSON.stringify(segment.slice(0, 200))} in the path is not URL-encoded UTF-8`,
    );
  }
}

/** A TCP port as people write it: 1 to 65535 in decimal, without zeros in front. */
/** `details`: of the failure that it throws. */
export function parsePort(text: string, details: Record<string, unknown> = {}): number {
  const port = /^[1-9]\d{0,4}$/.test(text) ? Number(text) : 0;
  if (port < 1 || port > 65_535)
    throw new Failure(
      'invalid',
      `port ${JSON.stringify(text.slice(0, 20))}: must be a number from 1 to 65535`,
      { details },
    );
  return port;
}
