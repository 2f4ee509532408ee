// The Engine API as bare as it gets: the floor must not pay for a client.
import { request } from 'node:http';

export function engine(
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const call = request(
      {
        socketPath: '/var/run/docker.sock',
        method,
        path: `/v1.41${path}`,
        headers: { 'Content-Type': 'application/json' },
      },
      (reply) => {
        let text = '';
        reply.on('data', (chunk) => {
          text += chunk;
        });
        reply.on('end', () => resolve({ status: reply.statusCode ?? 0, body: text }));
      },
    );
    call.on('error', reject);
    call.end(body === undefined ? undefined : JSON.stringify(body));
  });
}
