// What a question to a person is about, in words: a place that a sandbox wants to reach, or something that the host is to do for it.
import type { Question } from '../../sdk/src/index.ts';

export function placeOf({ host, port }: Question): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** `open_url https://…`; undefined where it is about a connection. */
export function wishOf({ action, detail = '' }: Question): string | undefined {
  return action === undefined ? undefined : `${action} ${detail}`.trimEnd();
}
