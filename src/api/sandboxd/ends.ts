// How both versions end a sandbox: its containers go before it, while they can still be found by it.
import type { SandboxdOptions } from './service.ts';

type Ending = Pick<SandboxdOptions, 'endpoints' | 'service'>;

export async function stopSandbox(
  id: string,
  { endpoints, service }: Ending,
  signal: AbortSignal,
): Promise<void> {
  await endpoints.stop(id);
  await service.stop(id, signal);
}

export async function removeSandbox(
  id: string,
  { endpoints, service }: Ending,
  signal: AbortSignal,
): Promise<void> {
  await endpoints.remove(id);
  await service.remove(id, signal, "a caller of Docker Sandboxes' API");
}
