// What a guest tries on its network, run inside it by the agent's own Bun: steps as JSON in the arguments, outcomes as JSON on stdout.
const { createSocket } = require('node:dgram');
const { connect } = require('node:net');

const waitMs = 10_000;

/** Connects, says `send`, and reads to the end. */
function stream({ address, port, send }) {
  return new Promise((resolve) => {
    let received = '';
    const socket = connect({ host: address, port });
    socket.setTimeout(waitMs, () => resolve({ error: 'timeout' }));
    socket.on('connect', () => socket.write(send));
    socket.on('data', (bytes) => {
      received += bytes;
    });
    socket.on('end', () => resolve({ client: socket.localPort, received }));
    socket.on('error', ({ code }) => resolve({ error: code }));
    socket.on('close', () => resolve({ error: 'closed' }));
  });
}

/** Sends a datagram and waits for one that answers it. */
function datagram({ address, port, hex }) {
  return new Promise((resolve) => {
    const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
    const settle = (outcome) => {
      clearTimeout(timer);
      resolve(outcome);
      try {
        socket.close();
      } catch {
        // It was closed by its own error.
      }
    };
    const timer = setTimeout(() => settle({ error: 'timeout' }), waitMs);
    socket.on('error', ({ code }) => settle({ error: code }));
    socket.on('message', (bytes) => settle({ hex: bytes.toString('hex') }));
    socket.connect(port, address, () => {
      socket.send(Buffer.from(hex, 'hex'), (error) => error && settle({ error: error.code }));
    });
  });
}

async function main() {
  const outcomes = [];
  for (const step of JSON.parse(process.argv[2]))
    outcomes.push(await (step.kind === 'stream' ? stream(step) : datagram(step)));
  console.log(JSON.stringify(outcomes));
  process.exit(0);
}

void main();
