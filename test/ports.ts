// Ports for what a test has to name before anybody listens there.
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';

/** A port of an address of this host that nobody has, below those that the kernel gives to whoever asks for any: a test that runs meanwhile does not get it. */
export async function freePort(address = '127.0.0.1'): Promise<number> {
  const [givenFrom = Number.NaN] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8')
    .split(/\s+/)
    .map(Number);
  const lowest = 10_000;
  if (!(givenFrom > lowest + 1_000))
    throw new Error(`the kernel gives ports from ${givenFrom} on: no room below`);
  for (let tries = 0; tries < 100; tries++) {
    const port = lowest + Math.floor(Math.random() * (givenFrom - lowest));
    const server = createServer().listen(port, address);
    const free = await once(server, 'listening').then(
      () => true,
      () => false,
    );
    if (!free) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
  throw new Error(`no free port of ${address} found`);
}
