// Metadata of sandboxes: the rules for keys and values, and the filter of a list.
import { nameLabel, sandboxNameProblem } from '../../contract/admin.ts';
import { metadataKeyProblem, metadataValueProblem } from '../../contract/opensandbox.ts';
import { Refusal } from '../refusal.ts';

/** The value of `metadata` is a query string of its own, so what is in it has been encoded twice. */
export function metadataFilterOf(filters: string[]): Record<string, string> {
  const wanted: [string, string][] = [];
  for (const pair of filters.flatMap((it) => it.split('&'))) {
    const [key, value, ...more] = pair.split('=').map(decodeOnce);
    if (key === undefined || key === '' || value === undefined || more.length > 0)
      throw new Refusal('invalid', `metadata: ${JSON.stringify(pair.slice(0, 200))} is not key=value`, {
        wireCode: 'INVALID_METADATA_FORMAT',
        hint: 'Write ?metadata= and then key=value&key2=value2, URL-encoded as a whole.',
      });
    wanted.push([key, value]);
  }
  return Object.fromEntries(wanted);
}

function decodeOnce(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll('+', ' '));
  } catch {
    return text;
  }
}

export function refuseLabel(key: string, value: string): void {
  // Names of ours may hold a character more than OpenSandbox's labels.
  if (key === nameLabel && sandboxNameProblem(value) === undefined) return;
  const problem = metadataKeyProblem(key);
  const what = problem === undefined ? metadataValueProblem(value) : problem;
  if (what === undefined) return;
  const where =
    problem === undefined ? `the value of ${JSON.stringify(key)}` : `the key ${JSON.stringify(key)}`;
  throw new Refusal('invalid', `metadata: ${where.slice(0, 300)} cannot be used: ${what}`, {
    wireCode: 'SANDBOX::INVALID_METADATA_LABEL',
  });
}
