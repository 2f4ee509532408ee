// What the sandboxes of the gateway's tests serve: a server in plain Python that tells what it was asked, echoes WebSockets, sends events one by one, and swallows and
// makes bytes.
export const gatewayGuest = `
import base64, hashlib, http.server, json, socketserver, struct

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def said(self, status, text, headers=()):
        body = text.encode()
        self.send_response(status)
        for name, value in headers: self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)
    def echo(self):
        accept = base64.b64encode(hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.wfile.flush()
        while True:
            first, second = self.rfile.read(2)
            length = second & 127
            if length == 126: length = struct.unpack(">H", self.rfile.read(2))[0]
            if length == 127: length = struct.unpack(">Q", self.rfile.read(8))[0]
            mask = self.rfile.read(4)
            data = self.rfile.read(length)
            pad = (mask * (length // 4 + 1))[:length]
            data = (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(length, "big")
            size = bytes([length]) if length < 126 else bytes([126]) + struct.pack(">H", length) if length < 65536 else bytes([127]) + struct.pack(">Q", length)
            self.wfile.write(bytes([first]) + size + data)
            self.wfile.flush()
            if first & 15 == 8: break
        self.close_connection = True
    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number in range(3):
            self.wfile.write(b"data: %d\\n\\n" % number)
            self.wfile.flush()
            # The next one when the test has seen this one.
            with open("/tmp/go-%d" % number) as go: go.read()
    def pieces(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while True:
                size = int(self.rfile.readline(), 16)
                if size: yield self.rfile.read(size)
                self.rfile.readline()
                if not size: return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            piece = self.rfile.read(min(left, 1 << 16))
            left -= len(piece)
            yield piece
    def do_GET(self):
        path = self.path.split("?")[0]
        if self.headers.get("Upgrade") == "websocket": return self.echo()
        if path == "/events": return self.events()
        if path == "/away": return self.said(302, "", [("Location", "/login?next=1")])
        if path == "/large":
            self.send_response(200)
            count = int(self.path.split("?")[1])
            self.send_header("Content-Length", str(count << 20))
            self.end_headers()
            for _ in range(count): self.wfile.write(bytes(1 << 20))
            return
        body = hashlib.sha256()
        size = 0
        for piece in self.pieces():
            body.update(piece)
            size += len(piece)
        headers = [[name, value] for name, value in self.headers.items()]
        self.said(200, json.dumps({"method": self.command, "path": self.path, "headers": headers, "size": size, "sha256": body.hexdigest()}),
            [("Set-Cookie", "app=1; Path=/; HttpOnly"), ("X-Method", self.command)])
    do_POST = do_PUT = do_HEAD = do_OPTIONS = do_GET

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

Server(("127.0.0.1", 8000), Answer).serve_forever()
`;
