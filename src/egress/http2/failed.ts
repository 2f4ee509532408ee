// HTTP/2 for a guest that speaks nothing else, when the world's end could not be reached: its requests learn why.
import { performServerHandshake, type ServerHttp2Stream } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import type { AdmittedRequest, RequestGate } from '../admission.ts';
import type { Connection } from '../connection.ts';
import type { GuestRequest, Refused } from '../gate.ts';
import { Malformed } from '../http1/head.ts';
import { errorRefusal, malformedRefusal } from '../refusal.ts';
import type { Destination, UpstreamError } from '../upstream.ts';
import { readHead } from './head.ts';

/** One that could not be reached is told of this often on one connection. */
const answersMax = 8;
/** And for this long. */
const staysMs = 10_000;

/** Owns the socket. `onEnd`: once, when it is closed. */
export function answerFailed(
  connection: Connection,
  guest: TLSSocket,
  to: Destination,
  options: { gate: RequestGate; error: UpstreamError; onEnd: (requests: number) => void },
): void {
  let requests = 0;
  const session = performServerHandshake(guest, { settings: { maxConcurrentStreams: answersMax } });
  const timer = setTimeout(() => session.destroy(), staysMs);
  guest.on('error', () => {});
  guest.once('close', () => {
    clearTimeout(timer);
    options.onEnd(requests);
  });
  guest.once('end', () => session.destroy());
  session.on('error', () => {});
  session.on('stream', (stream, _, __, raw) => {
    stream.on('error', () => {});
    if (++requests > answersMax) return void session.destroy();
    void refusalOf(connection, to, raw as unknown as string[], options).then((refusal) =>
      respond(stream, refusal),
    );
  });
  // The session waits for this, which a socket of ours, unlike those of a tls.Server, does not say by itself.
  guest.emit('secureConnect');
}

async function refusalOf(
  connection: Connection,
  to: Destination,
  raw: readonly string[],
  { gate, error }: { gate: RequestGate; error: UpstreamError },
): Promise<Refused> {
  let request: GuestRequest;
  try {
    const { authority, method, target, headers } = readHead(raw);
    const { kind, client } = connection;
    const what = { destination: to, scheme: 'https', protocol: 'https', kind, client } as const;
    request = { ...what, authority, method, target, headers };
  } catch (thrown) {
    if (!(thrown instanceof Malformed)) throw thrown;
    return malformedRefusal(thrown.status, thrown.message);
  }
  const admission: Refused | AdmittedRequest = await gate.admit(request, connection.signal);
  if (admission.kind === 'refused') return admission;
  const refusal = errorRefusal(to, 'https', error);
  admission.failed(error, refusal);
  return refusal;
}

function respond(stream: ServerHttp2Stream, { status, headers, body }: Refused): void {
  if (stream.closed || stream.destroyed) return;
  const fields = headers.map(([name, value]) => [name.toLowerCase(), value] as const);
  stream.respond({ ':status': status, ...Object.fromEntries(fields) });
  stream.end(body);
}
