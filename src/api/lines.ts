// A stream of JSON lines without end: waits for slow readers, and shows quick ones by an empty line now and then that it lives.
import { once } from 'node:events';
import type { Answer, Exchange } from './exchange.ts';

const heartbeatMs = 15_000;

/** The head goes out before the first line, so that a client knows at once that it is heard. Ends with its source. */
export async function sendLines(exchange: Exchange, lines: AsyncIterable<unknown>): Promise<Answer> {
  const { response, signal } = exchange;
  signal.throwIfAborted();
  response.writeHead(200, {
    'Content-Type': 'application/x-ndjson',
    'Cache-Control': 'no-cache',
    'X-Accel-Buffering': 'no',
  });
  response.flushHeaders();
  const heartbeat = setInterval(() => {
    if (!response.writableNeedDrain) response.write('\n');
  }, heartbeatMs);
  try {
    for await (const line of lines)
      if (!response.write(`${JSON.stringify(line)}\n`)) await once(response, 'drain', { signal });
  } finally {
    clearInterval(heartbeat);
  }
  response.end();
  return 'taken';
}
