// Glovebox's own routes: health, this API's description, images, and what the daemon is.
import { createOpenApi } from '../contract/openapi.ts';
import { isSnapshotImage } from '../contract/snapshot.ts';
import type { ApiOptions, Handlers } from './handlers.ts';
import { refuseSnapshotImage } from './opensandbox/restore.ts';

type AdminHandlers = Handlers<
  'health' | 'openApi' | 'reportEvent' | 'system' | 'listImages' | 'importImage' | 'removeImage'
>;

/** Reports of clients are a few hundred bytes; nobody reads them, and no more is taken. */
const reportBytesMax = 64 * 1024;

export function adminHandlers({ images, system, version }: ApiOptions): AdminHandlers {
  const describe = once(() => createOpenApi(version));
  return {
    health: () => ({ status: 200, json: { status: 'healthy' } }),
    openApi: () => ({ status: 200, json: describe() }),
    reportEvent: async ({ exchange }) => {
      let bytes = 0;
      for await (const chunk of exchange.body()) {
        bytes += chunk.length;
        if (bytes > reportBytesMax) break;
      }
      return { status: 204 };
    },
    system: async ({ exchange }) => ({ status: 200, json: await system(exchange.signal) }),
    listImages: async () => ({
      status: 200,
      json: { items: (await images.list()).filter(({ name }) => !isSnapshotImage(name)) },
    }),
    importImage: async ({ query, exchange }) => {
      refuseSnapshotImage(query.name);
      const imported = await images.import(exchange.body(), { name: query.name }, exchange.signal);
      return { status: 201, json: imported };
    },
    removeImage: async ({ params }) => {
      refuseSnapshotImage(params.name ?? '');
      await images.remove(params.name ?? '');
      return { status: 204 };
    },
  };
}

/** Anybody may ask for it, so it is made once. */
function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
