// Headers that a proxy does not pass on, either way, whatever HTTP carries them.

const one: ReadonlySet<string> = new Set([
  // About one connection (RFC 9110, section 7.6.1), or said by proxies to each other.
  ...['keep-alive', 'te', 'trailer', 'http2-settings', 'proxy', 'proxy-connection', 'proxy-authorization'],
  ...['proxy-authenticate', 'proxy-authentication-info', 'forwarded'],
  // Of a way around us.
  'alt-svc',
]);

/** `name` in lower case. What begins with `x-glovebox-` is for us to say: a server could pass off its answer as ours. */
export const staysOnHop = (name: string): boolean =>
  one.has(name) || name.startsWith('x-forwarded-') || name.startsWith('x-glovebox-');

/** Read by some servers as the names that they resemble. */
export const misleading: ReadonlySet<string> = new Set(['content_length', 'transfer_encoding']);
