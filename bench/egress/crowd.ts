// A thousand keep-alive connections through a proxy, each with one answer taken, and one tunnel whose reader stops: prints what the proxy then holds.
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

const [proxyPort, httpPort, bulkPort, proxyPid] = process.argv.slice(2).map(Number) as [
  number,
  number,
  number,
  number,
];
const crowd = 1_000;

function dial(first: string, until: (text: string) => boolean): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port: proxyPort, host: '127.0.0.1' }, () => socket.write(first));
    let text = '';
    socket.on('data', (bytes) => {
      text += bytes.toString('latin1');
      if (until(text)) resolve(socket);
    });
    socket.once('error', reject);
    socket.once('close', () => reject(new Error(`closed after ${text.slice(0, 200)}`)));
  });
}

const whole = (text: string) => text.startsWith('HTTP/1.1 200') && text.endsWith('x'.repeat(1024));
const place = `origin.test:${httpPort}`;
const get = `GET http://${place}/ HTTP/1.1\r\nHost: ${place}\r\n\r\n`;
const open: Socket[] = [];
for (let at = 0; at < crowd; at += 50)
  open.push(...(await Promise.all(Array.from({ length: 50 }, () => dial(get, whole)))));

const bulk = `origin.test:${bulkPort}`;
const stalled = await dial(`CONNECT ${bulk} HTTP/1.1\r\nHost: ${bulk}\r\n\r\n`, (text) =>
  text.includes('\r\n\r\n'),
);
stalled.pause();
stalled.write('go');

/** What the proxy holds once it has stopped growing. */
const held = () =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${proxyPid}/status`, 'utf8'))?.[1]) / 1024;
let most = held();
for (let still = 0; still < 10; ) {
  await delay(100);
  const now = held();
  still = now > most ? 0 : still + 1;
  most = Math.max(most, now);
}
console.log(JSON.stringify({ rssMiB: most }));
for (const socket of [...open, stalled]) socket.destroy();
process.exit(0);
