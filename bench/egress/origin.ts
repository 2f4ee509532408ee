// The world for the egress figures, as a process of its own: small answers over HTTP and HTTPS, and as many bytes as one likes over plain TCP.
// Answers are written by hand over raw sockets, so that the origin is never what is measured. Beside them an ordinary application, of Node's own HTTP.
//
//   node origin.ts CERTIFICATE KEY      prints { http, https, bulk, application } (ports) and serves until its stdin ends
import { readFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { bulkBytes } from './shapes.ts';

const [certificate = '', key = ''] = process.argv.slice(2);
const body = 'x'.repeat(1024);
const answer = Buffer.from(
  `HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
);
const piece = Buffer.alloc(256 * 1024, 'x');

/** One answer for each end of a head: requests have no bodies here. */
function answerHeads(socket: Socket): void {
  let matched = 0;
  socket.setNoDelay(true);
  socket.on('error', () => socket.destroy());
  socket.on('data', (bytes: Buffer) => {
    let answers = 0;
    for (const byte of bytes) {
      // "\r\n\r\n", as a machine of four states.
      matched = byte === (matched % 2 === 0 ? 13 : 10) ? matched + 1 : byte === 13 ? 1 : 0;
      if (matched === 4) {
        matched = 0;
        answers++;
      }
    }
    for (; answers > 0; answers--) socket.write(answer);
  });
}

function pour(socket: Socket): void {
  let left = bulkBytes;
  socket.on('error', () => socket.destroy());
  const more = () => {
    while (left > 0) {
      left -= piece.length;
      if (!socket.write(piece)) return;
    }
    socket.end();
  };
  socket.on('drain', more);
  socket.once('data', more);
}

const servers = {
  http: createServer({ noDelay: true }, answerHeads),
  https: createTlsServer({ cert: readFileSync(certificate), key: readFileSync(key) }, answerHeads),
  bulk: createServer(pour),
  application: createHttpServer((_request, response) => {
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': body.length });
    response.end(body);
  }),
};
const ports: Record<string, number> = {};
for (const [name, server] of Object.entries(servers)) {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  ports[name] = (server.address() as { port: number }).port;
}
console.log(JSON.stringify(ports));
process.stdin.resume().on('end', () => process.exit(0));
