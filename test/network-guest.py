# What a program of a guest does to its network, asked for as JSON lines on stdin and told as JSON lines on stdout. For tests.
import errno, json, os, select, socket, struct, sys

sockets = {}

def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET

def connect(kind, address, port):
    it = socket.socket(family(address), kind)
    it.settimeout(20)
    it.connect((address, port))
    return it

def query(name, kind, extra=b"", flags=0x0100):
    labels = b"".join(bytes([len(it)]) + it for it in name.encode("latin1").split(b".") if it)
    counts = (1, 0, 0, 1 if extra else 0)
    return struct.pack(">HHHHHH", 0x1234, flags, *counts) + labels + b"\0" + struct.pack(">HH", kind, 1) + extra

def told(message):
    id, flags, _, answers, _, _ = struct.unpack(">HHHHHH", message[:12])
    at = 12
    while message[at]:
        at += message[at] + 1
    at += 5
    result = {"id": id, "code": flags & 15, "cut": bool(flags & 0x200), "answers": []}
    for _ in range(answers):
        kind, _, ttl, size = struct.unpack(">HHIH", message[at + 2 : at + 12])
        data = message[at + 12 : at + 12 + size]
        at += 12 + size
        if kind in (1, 28):
            data = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data)
        else:
            data = data.hex()
        result["answers"].append({"type": kind, "ttl": ttl, "data": data})
    return result

def exactly(it, size):
    data = b""
    while len(data) < size:
        piece = it.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

def do(ask):
    op = ask["op"]
    if op == "connect":
        it = connect(socket.SOCK_STREAM, ask["address"], ask["port"])
        sockets[ask["as"]] = it
        return {"port": it.getsockname()[1]}
    if op == "many":
        opened = []
        for index in range(ask["count"]):
            it = connect(socket.SOCK_STREAM, ask["address"], ask["port"])
            it.sendall(str(index).encode())
            opened.append(it)
        sockets[ask["as"]] = opened
        return {}
    if op == "broken":
        # How many of them the other side has broken off, ended or written to.
        poll = select.poll()
        for it in sockets[ask["as"]]:
            poll.register(it, select.POLLIN)
        return {"count": len(poll.poll(0))}
    if op == "closeMany":
        for it in sockets.pop(ask["as"]):
            it.close()
        return {}
    if op == "send":
        sockets[ask["as"]].sendall(ask["text"].encode("latin1"))
        return {}
    if op == "end":
        sockets[ask["as"]].shutdown(socket.SHUT_WR)
        return {}
    if op == "receive":
        text = b""
        while True:
            piece = sockets[ask["as"]].recv(65536)
            if not piece:
                return {"text": text.decode("latin1"), "ended": True}
            text += piece
            if "size" in ask and len(text) >= ask["size"]:
                return {"text": text.decode("latin1"), "ended": False}
    if op == "count":
        # Reads to the end, and tells how much that was.
        total = 0
        while True:
            piece = sockets[ask["as"]].recv(262144)
            if not piece:
                return {"bytes": total}
            total += len(piece)
    if op == "pour":
        data = b"x" * 65536
        for _ in range(ask["bytes"] // len(data)):
            sockets[ask["as"]].sendall(data)
        return {}
    if op == "close":
        sockets.pop(ask["as"]).close()
        return {}
    if op == "abort":
        it = sockets.pop(ask["as"])
        it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        it.close()
        return {}
    if op == "datagram":
        it = connect(socket.SOCK_DGRAM, ask["address"], ask["port"])
        it.send(b"hello?")
        it.recv(100)
        return {}
    if op == "ask":
        message = query(ask["name"], ask["type"], bytes.fromhex(ask.get("extra", "")))
        if ask.get("stream"):
            it = connect(socket.SOCK_STREAM, ask["address"], 53)
            it.sendall(struct.pack(">H", len(message)) + message)
            it.shutdown(socket.SHUT_WR)
            (size,) = struct.unpack(">H", exactly(it, 2))
            return told(exactly(it, size))
        it = connect(socket.SOCK_DGRAM, ask["address"], 53)
        it.send(message)
        return told(it.recv(4096))
    if op == "lookup":
        return {"addresses": sorted({it[4][0] for it in socket.getaddrinfo(ask["name"], 80)})}
    if op == "listen":
        it = socket.socket(family(ask["address"]), socket.SOCK_STREAM)
        it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        it.bind((ask["address"], ask["port"]))
        it.listen()
        sockets[ask["as"]] = it
        return {}
    raise ValueError(op)

if len(sys.argv) > 1:
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
for line in sys.stdin:
    try:
        answer = do(json.loads(line))
    except OSError as error:
        answer = {"error": errno.errorcode.get(error.errno, type(error).__name__)}
    except EOFError:
        answer = {"error": "EOF"}
    print(json.dumps(answer), flush=True)
