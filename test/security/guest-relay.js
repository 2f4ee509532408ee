// Runs inside a guest under Bun: opens connections of that guest for tests outside. A WebSocket to it is one connection, made as the query says
// (address and port, or unix); binary messages are its bytes, text messages its events.
//   to the test:   {"event":"open","port":N}  {"event":"end"}  {"event":"close","error":CODE?}
//   from the test: end
const queuedBytesMax = 1_048_576;

Bun.serve({
  hostname: '127.0.0.1',
  port: Number(process.argv.at(-1)),
  fetch(request, server) {
    const query = new URL(request.url).searchParams;
    if (server.upgrade(request, { data: { query, waiting: [] } })) return undefined;
    return new Response('ready');
  },
  websocket: {
    maxPayloadLength: 64 * 1_048_576,
    backpressureLimit: 256 * 1_048_576,
    open(ws) {
      const { query } = ws.data;
      const unix = query.get('unix');
      const to =
        unix === null ? { hostname: query.get('address'), port: Number(query.get('port')) } : { unix };
      const tell = (event, more = {}) => ws.send(JSON.stringify({ event, ...more }));
      const over = (error) => {
        if (ws.data.over) return;
        ws.data.over = true;
        tell('close', error ? { error: error.code ?? String(error) } : {});
      };
      Bun.connect({
        ...to,
        allowHalfOpen: true,
        socket: {
          binaryType: 'uint8array',
          open(socket) {
            ws.data.socket = socket;
            tell('open', { port: socket.localPort });
            flush(ws);
          },
          data(socket, bytes) {
            ws.send(bytes);
            if (ws.getBufferedAmount() > queuedBytesMax) socket.pause();
          },
          drain: () => flush(ws),
          end: () => tell('end'),
          close: (_, error) => over(error),
          error: (_, error) => over(error),
        },
      }).catch(over);
    },
    message(ws, message) {
      ws.data.waiting.push(typeof message === 'string' ? message : new Uint8Array(message));
      flush(ws);
    },
    drain: (ws) => ws.data.socket?.resume(),
    close(ws) {
      ws.data.over = true;
      ws.data.socket?.terminate();
    },
  },
});

function flush(ws) {
  const { socket, waiting } = ws.data;
  while (socket !== undefined && waiting.length > 0) {
    const [next] = waiting;
    if (next === 'end') socket.shutdown();
    else {
      const written = socket.write(next);
      if (written < next.length) {
        waiting[0] = next.subarray(Math.max(0, written));
        return;
      }
    }
    waiting.shift();
  }
}
