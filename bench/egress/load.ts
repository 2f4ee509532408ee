// Clients for the egress figures, as a process of its own: reads one order from its argument, prints one result. Every answer is counted when its last
// byte has come; an answer other than 200, or a broken connection, fails the whole.
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { bulkBytes, type LoadOrder, type LoadResult } from './shapes.ts';

const order = JSON.parse(process.argv[2] ?? '') as LoadOrder;
const { scenario, proxyPort, host, port } = order;
const latencies: number[] = [];
const deadline = performance.now() + order.ms;
const place = `${host}:${port}`;
const plainTarget = proxyPort === undefined ? '/x' : `http://${place}/x`;
const request = Buffer.from(
  `GET ${scenario === 'plain' ? plainTarget : '/x'} HTTP/1.1\r\nHost: ${place}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n`,
);

function dial(): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port: proxyPort ?? port, host: '127.0.0.1', noDelay: true });
    socket.once('error', reject);
    socket.once('connect', () => resolve(socket));
  });
}

/** The end of a head, of which no more than the head has been sent. */
function head(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const take = (bytes: Buffer) => {
      text += bytes.toString('latin1');
      if (!text.includes('\r\n\r\n')) return;
      socket.off('data', take);
      socket.off('close', closed);
      resolve(text);
    };
    const closed = () => reject(new Error(`closed after ${JSON.stringify(text.slice(0, 200))}`));
    socket.on('data', take);
    socket.once('close', closed);
  });
}

async function tunnel(): Promise<Socket> {
  const socket = await dial();
  if (proxyPort === undefined) return socket;
  socket.write(`CONNECT ${place} HTTP/1.1\r\nHost: ${place}\r\n\r\n`);
  const answer = await head(socket);
  if (!answer.startsWith('HTTP/1.1 200') && !answer.startsWith('HTTP/1.0 200')) throw new Error(answer);
  return socket;
}

async function secure(): Promise<Socket> {
  const socket = await tunnel();
  return new Promise((resolve, reject) => {
    const tls = connectTls({ socket, servername: host, ca: order.authority, ALPNProtocols: ['http/1.1'] });
    tls.once('error', reject);
    tls.once('secureConnect', () => resolve(tls));
  });
}

/** One answer with a Content-Length, from its first byte to its last. */
function exchange(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    let text = '';
    let wanted = -1;
    let seen = 0;
    const settle = (error?: Error) => {
      socket.off('data', take);
      socket.off('close', closed);
      if (error) return reject(error);
      latencies.push(performance.now() - began);
      resolve();
    };
    const take = (bytes: Buffer) => {
      seen += bytes.length;
      if (wanted < 0) {
        text += bytes.toString('latin1');
        const end = text.indexOf('\r\n\r\n');
        if (end < 0) return;
        if (!/^HTTP\/1\.[01] 200/.test(text)) return settle(new Error(text.slice(0, 500)));
        wanted = end + 4 + Number(/content-length: *(\d+)/i.exec(text)?.[1] ?? Number.NaN);
      }
      if (seen >= wanted) settle();
    };
    const closed = () => settle(new Error('closed in the middle of an answer'));
    socket.on('data', take);
    socket.once('close', closed);
    socket.write(request);
  });
}

async function keepAlive(open: () => Promise<Socket>): Promise<number> {
  const socket = await open();
  let count = 0;
  while (performance.now() < deadline) {
    await exchange(socket);
    count++;
  }
  socket.destroy();
  return count;
}

async function newEachTime(): Promise<number> {
  let count = 0;
  while (performance.now() < deadline) {
    const socket = await secure();
    await exchange(socket);
    socket.destroy();
    count++;
  }
  return count;
}

async function pull(): Promise<number> {
  const socket = await tunnel();
  let bytes = 0;
  socket.on('data', (piece: Buffer) => {
    bytes += piece.length;
  });
  const ended = new Promise((resolve, reject) => {
    socket.once('end', resolve);
    socket.once('error', reject);
  });
  socket.write('go');
  await ended;
  if (bytes !== bulkBytes) throw new Error(`a tunnel gave ${bytes} bytes`);
  return bytes;
}

const works: Record<LoadOrder['scenario'], () => Promise<number>> = {
  plain: () => keepAlive(dial),
  intercepted: () => keepAlive(secure),
  'intercepted-new': newEachTime,
  tunnel: pull,
};

const began = performance.now();
const counts = await Promise.all(Array.from({ length: order.clients }, works[scenario]));
latencies.sort((a, b) => a - b);
const at = (share: number) => latencies[Math.floor((latencies.length - 1) * share)] ?? 0;
const result: LoadResult = {
  count: counts.reduce((sum, it) => sum + it, 0),
  ms: performance.now() - began,
  p50Ms: at(0.5),
  p99Ms: at(0.99),
};
console.log(JSON.stringify(result));
process.exit(0);
