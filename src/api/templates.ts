// Templates: requests to calls of the template service. The shapes are those of contract/template.ts.
import type { BuildEvent, TemplateInfo } from '../contract/template.ts';
import { Failure } from '../lib/failure.ts';
import type { BuildRequest } from '../template/templates.ts';
import { isOwner } from './gate.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { sendLines } from './lines.ts';
import { refuseSnapshotImage } from './opensandbox/restore.ts';
import { primed } from './primed.ts';

export interface TemplateService {
  list(signal: AbortSignal): Promise<TemplateInfo[]>;
  /** Ends with `done` or `failed`, and throws only when the caller's signal fires; then nothing of it stays. */
  build(request: BuildRequest, signal: AbortSignal): AsyncIterable<BuildEvent>;
  save(sandboxId: string, name: string, signal: AbortSignal): Promise<TemplateInfo>;
  load(
    name: string,
    runtime: string | undefined,
    source: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<TemplateInfo>;
  export(name: string, runtime: string | undefined, signal: AbortSignal): AsyncIterable<Uint8Array>;
  remove(name: string, runtime: string | undefined, signal: AbortSignal): Promise<void>;
}

type TemplateHandlers = Handlers<
  'listTemplates' | 'buildTemplate' | 'loadTemplate' | 'exportTemplate' | 'removeTemplate' | 'saveSandbox'
>;

export function templateHandlers({ templates, ownerKey }: ApiOptions): TemplateHandlers {
  return {
    listTemplates: async ({ exchange }) => ({
      status: 200,
      json: { items: await templates.list(exchange.signal) },
    }),
    buildTemplate: ({ query, exchange }) => {
      const { name, file, arg, runtime, target, noCache = false, network = false } = query;
      refuseSnapshotImage(name);
      // What a Dockerfile adds from an address the engine fetches by itself, from the host's network, where no policy holds.
      if (!file.startsWith('recipe:') && !file.endsWith('.toml') && !isOwner(exchange.request, ownerKey))
        throw new Failure('permission', `build ${file}: only the daemon's own user may build Dockerfiles`, {
          hint: 'Write a template file (.toml): its steps run in a sandbox, under the policy.',
        });
      const request = {
        ...{ name, file, noCache, network, args: argumentsOf(arg), context: exchange.body() },
        ...(runtime === undefined ? {} : { runtime }),
        ...(target === undefined ? {} : { target }),
      };
      return sendLines(exchange, templates.build(request, exchange.signal));
    },
    loadTemplate: async ({ query, exchange }) => {
      refuseSnapshotImage(query.name);
      const loaded = await templates.load(query.name, query.runtime, exchange.body(), exchange.signal);
      return { status: 201, json: loaded };
    },
    exportTemplate: async ({ params, query, exchange }) => ({
      status: 200,
      type: 'application/x-tar',
      bytes: await primed(templates.export(params.name ?? '', query.runtime, exchange.signal)),
    }),
    removeTemplate: async ({ params, query, lifetime }) => {
      refuseSnapshotImage(params.name ?? '');
      await templates.remove(params.name ?? '', query.runtime, lifetime);
      return { status: 204 };
    },
    saveSandbox: async ({ sandboxId, body, lifetime }) => {
      refuseSnapshotImage(body.name);
      return { status: 201, json: await templates.save(sandboxId, body.name, lifetime) };
    },
  };
}

function argumentsOf(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1) throw new Failure('invalid', `arg: ${JSON.stringify(pair)} is not KEY=VALUE`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}
