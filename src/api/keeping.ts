// Sandboxes that are kept: started, stopped, held open by whoever is attached.
import type { ApiOptions, Handlers } from './handlers.ts';
import { sandboxOf } from './opensandbox/lifecycle.ts';

export function keepingHandlers({
  service,
}: ApiOptions): Handlers<'startSandbox' | 'stopSandbox' | 'holdSandbox'> {
  return {
    startSandbox: async ({ sandboxId, lifetime }) => {
      await service.start(sandboxId, lifetime);
      return { status: 200, json: sandboxOf(service.get(sandboxId), service) };
    },
    stopSandbox: async ({ sandboxId, lifetime }) => {
      await service.stop(sandboxId, lifetime);
      return { status: 200, json: sandboxOf(service.get(sandboxId), service) };
    },
    holdSandbox: async ({ sandboxId, accept }) => {
      const held = service.hold(sandboxId);
      try {
        await (await accept()).ended;
      } finally {
        held[Symbol.dispose]();
      }
      return 'taken' as const;
    },
  };
}
