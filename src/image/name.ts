// How images of the local store are called: `name`, `group/name`, `name:tag`.
import { Failure } from '../lib/failure.ts';

/** The built-in image: the host's own system folders. */
export { hostImage } from '../contract/admin.ts';

const nameLengthMax = 128;

/**
 * The one spelling of a name: `:latest` means nothing and is dropped, as is Docker's own registry in front.
 * Failure('invalid') when it is no name for an image of ours.
 */
export function imageName(text: string): string {
  const name = text.replace(/^docker\.io\/(library\/)?/, '').replace(/:latest$/, '');
  const wellFormed =
    name.length <= nameLengthMax &&
    /^[a-z0-9][a-z0-9._/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?$/.test(name) &&
    !/\/\/|\/(:|$)|(^|\/)\.{1,2}(\/|:|$)/.test(name);
  if (wellFormed) return name;
  throw new Failure('invalid', `${JSON.stringify(text.slice(0, 200))} is no name for an image`, {
    hint: `Use small letters, digits, '.', '_', '-' and '/', perhaps followed by ':tag'; at most ${nameLengthMax} characters.`,
  });
}
