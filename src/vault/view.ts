// What one sandbox may use, ready to be asked: its own secrets before those for all, and every placeholder that must not get out.
import type { Grant } from './grant.ts';
import { matchesHost } from './place.ts';
import { Finder, placeholderForms, watchedBytesMin } from './placeholders.ts';

/** A secret as far as requests are concerned. */
export interface UsableSecret {
  name: string;
  grants: readonly Grant[];
  /** All that stand for it: its own, and those of the secret for all sandboxes that it stands before. */
  placeholders: readonly string[];
  /** Variables of the guest. */
  environment: Readonly<Record<string, string>>;
  /** Less is asked first: OpenSandbox's credential vault, secrets of the sandbox, secrets for all. */
  rank: number;
  read(signal: AbortSignal): Promise<string>;
}

export interface View {
  /** In the order in which they are asked. */
  secrets: readonly UsableSecret[];
  finder: Finder;
  /** Whose a placeholder is. Those of other sandboxes' secrets are nobody's here. */
  owners: ReadonlyMap<string, readonly UsableSecret[]>;
  placeholders: readonly Buffer[];
  /** Without those of secrets that are bound to this place. */
  foreignPlaceholders(host: string, port: number): readonly Buffer[];
  environment: Readonly<Record<string, string>>;
}

export const isBoundTo = ({ grants }: UsableSecret, host: string, port: number): boolean =>
  grants.some(({ place }) => matchesHost(place, host, port) !== undefined);

/** `foreign`: placeholders of secrets that this sandbox may not use. */
export function viewOf(usable: readonly UsableSecret[], foreign: readonly string[]): View {
  const secrets = usable.toSorted((a, b) => a.rank - b.rank);
  const owners = new Map<string, UsableSecret[]>();
  for (const secret of secrets)
    for (const placeholder of secret.placeholders)
      owners.set(placeholder, [...(owners.get(placeholder) ?? []), secret]);
  const watched = [...new Set([...owners.keys(), ...foreign])].filter(
    (placeholder) => Buffer.byteLength(placeholder) >= watchedBytesMin,
  );
  const placeholders = bytesOf(watched);
  // By the secrets that are bound, for below a wildcard a guest can name as many places as it likes.
  const foreignTo = new Map<string, readonly Buffer[]>();
  return {
    secrets,
    finder: new Finder(watched),
    owners,
    placeholders,
    foreignPlaceholders(host, port) {
      const bound = secrets.filter((secret) => isBoundTo(secret, host, port));
      if (bound.length === 0) return placeholders;
      const key = bound.map((secret) => secrets.indexOf(secret)).join(' ');
      const known = foreignTo.get(key);
      if (known !== undefined) return known;
      const own = new Set(bound.flatMap((secret) => secret.placeholders));
      const made = bytesOf(watched.filter((placeholder) => !own.has(placeholder)));
      foreignTo.set(key, made);
      return made;
    },
    environment: Object.assign({}, ...secrets.toReversed().map((secret) => secret.environment)),
  };
}

const bytesOf = (placeholders: readonly string[]): Buffer[] =>
  [...new Set(placeholders.flatMap(placeholderForms))].map((form) => Buffer.from(form));
