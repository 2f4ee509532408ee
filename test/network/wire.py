# A wire between two network namespaces, which loses, delays and swallows packets as it is told: what netem does, for kernels without it.
# Arguments: the names of its two ends, interfaces that are made here and may be moved into other namespaces. Lines of JSON on stdin change it:
# delayMs and jitterMs (uniform) and lossPercent, each way; up and down: whether anything passes from the second end to the first, and back.
# Ends, and takes its interfaces along, when stdin does. On SIGUSR1 it says on stdout how many packets it has carried and lost.
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_BYTES_MAX = 65_536
WAITING_MAX = 10_000


def end(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


first, second = end(sys.argv[1]), end(sys.argv[2])
other = {first: second, second: first}
ways = {first: "down", second: "up"}
state = {"delayMs": 0, "jitterMs": 0, "lossPercent": 0, "up": True, "down": True}
chance = random.Random(1)
waiting = []
order = carried = lost = 0
commands = b""


def tell(*_):
    print(json.dumps({"carried": carried, "lost": lost}), flush=True)


signal.signal(signal.SIGUSR1, tell)
print("ready", flush=True)
while True:
    now = time.monotonic()
    while waiting and waiting[0][0] <= now:
        _, _, to, packet = heapq.heappop(waiting)
        try:
            os.write(to, packet)
            carried += 1
        except OSError:
            lost += 1
    ready, _, _ = select.select([0, first, second], [], [], waiting[0][0] - now if waiting else None)
    if 0 in ready:
        piece = os.read(0, 4096)
        if piece == b"":
            break
        *lines, commands = (commands + piece).split(b"\n")
        for line in lines:
            state.update(json.loads(line))
    for fd in ready:
        if fd == 0:
            continue
        try:
            packet = os.read(fd, PACKET_BYTES_MAX)
        except OSError:
            continue
        if not state[ways[fd]] or len(waiting) >= WAITING_MAX or chance.random() * 100 < state["lossPercent"]:
            lost += 1
            continue
        order += 1
        due = time.monotonic() + (state["delayMs"] + chance.uniform(-1, 1) * state["jitterMs"]) / 1000
        heapq.heappush(waiting, (due, order, other[fd], packet))
