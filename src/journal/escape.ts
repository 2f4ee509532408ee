// Makes text of guests safe to print and to keep: bounded, without characters that steer a terminal or turn text around, without values of queries.

// Controls, bidirectional marks and overrides, invisible joiners, and both line separators; halves of characters, too.
const unsafe = /[^\x20-\x7e]/;
const steering =
  /[\p{Cc}\p{Cs}\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

/** At most `max` characters; what would steer stands there as `\uXXXX`, and `…` for what was cut off. */
export function plain(text: string, max: number): string {
  const cut = text.length > max ? text.slice(0, max + 1) : text;
  const escaped = unsafe.test(cut) ? cut.replace(steering, escapeOf) : cut;
  if (escaped.length <= max) return escaped;
  // Not in the middle of an escape or of a character.
  return `${escaped.slice(0, max - 1).replace(/(\\u[0-9a-f]{0,3}|\\|[\ud800-\udbff])$/, '')}…`;
}

function escapeOf(character: string): string {
  let text = '';
  for (let at = 0; at < character.length; at += 1)
    text += `\\u${character.charCodeAt(at).toString(16).padStart(4, '0')}`;
  return text;
}

/** A request's target, or a path: values of the query become `*`, names stay; who asked (userinfo) and the fragment are dropped. */
export function withoutValues(target: string): string {
  const hash = target.indexOf('#');
  const whole = hash < 0 ? target : target.slice(0, hash);
  const bare = whole.startsWith('/') ? whole : withoutUser(whole);
  const question = bare.indexOf('?');
  if (question < 0) return bare;
  const pairs = bare
    .slice(question + 1)
    .split(/([&;])/)
    .map((it, index) => (index % 2 === 1 ? it : withoutValue(it)));
  return `${bare.slice(0, question)}?${pairs.join('')}`;
}

function withoutValue(pair: string): string {
  const equals = pair.indexOf('=');
  if (equals >= 0) return `${pair.slice(0, equals)}=*`;
  // A word alone may be a name (`?raw`), and may be a token.
  return /^[A-Za-z0-9_.-]{0,16}$/.test(pair) ? pair : '*';
}

/** A host or a URL without `user:password@`. */
export function withoutUser(text: string): string {
  return text.includes('@') ? text.replace(/^([a-z][a-z0-9+.-]*:\/\/)?[^/?]*@/i, '$1') : text;
}
