// The handshake of a WebSocket (RFC 6455 §4), as far as a proxy has to know it: nothing is joined before both sides have said the right words.
import { createHash } from 'node:crypto';
import type { RequestHead, ResponseHead } from './http1/head.ts';

const keyWord = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

/** The key of a proper upgrade. Undefined for every other request, also for those that ask for another protocol. */
export function webSocketKey(head: RequestHead): string | undefined {
  if (head.upgrade?.toLowerCase() !== 'websocket' || !head.connection.includes('upgrade')) return undefined;
  if (head.method !== 'GET' || head.minor !== 1 || head.framing.kind !== 'none') return undefined;
  const keys = head.headers.filter(([name]) => name === 'sec-websocket-key').map(([, value]) => value);
  const [key] = keys;
  if (keys.length !== 1 || key === undefined || !/^[A-Za-z0-9+/]{22}==$/.test(key)) return undefined;
  return key;
}

/** Whether `head` (a 101) answers the upgrade with that key. */
export function acceptsWebSocket(head: ResponseHead, key: string): boolean {
  const expected = createHash('sha1')
    .update(key + keyWord)
    .digest('base64');
  const accepts = head.headers.filter(([name]) => name === 'sec-websocket-accept').map(([, value]) => value);
  return (
    head.upgrade?.toLowerCase() === 'websocket' &&
    head.connection.includes('upgrade') &&
    accepts.length === 1 &&
    accepts[0] === expected
  );
}
