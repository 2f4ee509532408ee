// Which sandbox a person means: by id, unique beginning of an id, or name.
import { nameLabel } from '../contract/admin.ts';
import { Failure } from '../lib/failure.ts';
import type { SandboxInfo, SandboxService } from '../sandbox/sandbox.ts';

/**
 * Failure('not-found'), or Failure('conflict') when several ids begin like that. Names of projects come last: nobody is to take one for what the owner
 * means by an own name, or by the beginning of an id.
 */
export function sandboxIdOf(service: SandboxService, reference: string): string {
  const all = service.list();
  const ofOne = new Set(all.map((it) => it.project?.id)).size <= 1;
  const own = ofOne ? all : all.filter((it) => it.project === undefined);
  const exact = all.find((it) => it.id === reference) ?? named(own, reference);
  if (exact !== undefined) return exact.id;
  const beginning = all.filter((it) => it.id.startsWith(reference));
  if (beginning.length > 1)
    throw new Failure('conflict', `${beginning.length} sandboxes have ids that begin with ${reference}`, {
      hint: 'Give more of the id, or the name.',
    });
  if (beginning[0] !== undefined) return beginning[0].id;
  const others = all.filter((it) => it.metadata[nameLabel] === reference);
  if (others.length > 1)
    throw new Failure(
      'conflict',
      `${others.length} sandboxes of projects are called ${JSON.stringify(reference)}`,
      {
        hint: 'Give the id.',
      },
    );
  if (others[0] !== undefined) return others[0].id;
  throw new Failure('not-found', `there is no sandbox ${JSON.stringify(reference)}`, {
    hint: 'See `glovebox ls` for what there is.',
  });
}

/** A name is unique among live sandboxes only; of the others the newest, which comes first, is meant. */
function named(all: SandboxInfo[], name: string): SandboxInfo | undefined {
  const so = all.filter((it) => it.metadata[nameLabel] === name);
  return so.find((it) => it.state !== 'Terminated' && it.state !== 'Failed') ?? so[0];
}
