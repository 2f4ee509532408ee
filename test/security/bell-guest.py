"""What a hostile guest does to the bell: `bell-guest.py MODE`, with JSON on stdin and JSON on stdout. Runs inside a sandbox, with nothing but Python."""

import base64
import http.client
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

QUIET_SECONDS = 15
PROXY = ("127.0.0.1", 3128)


def talk(case):
    """Sends the pieces over one connection, each after something has come for the one before. Gives all that came, one character a byte."""
    try:
        if isinstance(case["to"], str):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(case["to"])
        else:
            connection = socket.create_connection(tuple(case["to"]), timeout=QUIET_SECONDS)
    except OSError as error:
        return {"error": str(error), "text": ""}
    text = b""
    with connection:
        connection.settimeout(QUIET_SECONDS)
        try:
            for index, piece in enumerate(case["pieces"]):
                if index > 0:
                    got = connection.recv(65536)
                    text += got
                    if not got:
                        break
                connection.sendall(base64.b64decode(piece))
            while got := connection.recv(65536):
                text += got
        except OSError as error:
            return {"error": str(error), "text": text.decode("latin-1")}
    return {"text": text.decode("latin-1")}


def spelt_out(body):
    """A text, or pieces of one with how often each of them comes."""
    return body if isinstance(body, str) else "".join(piece * times for piece, times in body)


def post(url, body):
    """Rings until it is no longer told to wait."""
    for _ in range(60):
        connection = http.client.HTTPConnection(url["host"], url["port"], timeout=60)
        try:
            connection.request("POST", "/", body.encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
        except OSError as error:
            return {"status": 0, "text": str(error)}
        finally:
            connection.close()
        if answer.status != 429:
            return {"status": answer.status, "text": text}
        time.sleep(0.2)
    return {"status": 429, "text": text}


def swap(folder, other, over):
    """Two names in a folder that change places all the time, until `over`."""
    while not over.is_set():
        for old, new in ((folder, other + ".x"), (other, folder), (folder, other), (other + ".x", folder)):
            os.rename(old, new)


def post_all(job):
    over = threading.Event()
    swapper = None
    if "swap" in job:
        swapper = threading.Thread(target=swap, args=(*job["swap"], over))
        swapper.start()
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda body: post(job["url"], spelt_out(body)), job["bodies"]))
    over.set()
    if swapper is not None:
        swapper.join()
    return replies


def flood(job):
    """Many requests over a few connections that are kept, as fast as it goes."""
    counts = {}
    lock = threading.Lock()
    target = "http://%s:%d/" % (job["url"]["host"], job["url"]["port"])

    def some(count):
        connection = http.client.HTTPConnection(*PROXY, timeout=60)
        for _ in range(count):
            try:
                connection.request("POST", target, job["body"].encode(), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status = type(error).__name__
            with lock:
                counts[status] = counts.get(status, 0) + 1
        connection.close()

    threads = [threading.Thread(target=some, args=(job["requests"] // job["threads"],)) for _ in range(job["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def hold(job):
    """Opens connections, sends the beginning of a request over each, and then nothing for as long as it lives."""
    held = []
    for _ in range(job["count"]):
        connection = socket.create_connection((job["url"]["host"], job["url"]["port"]))
        connection.sendall(job["text"].encode())
        held.append(connection)
    print(json.dumps(len(held)), flush=True)
    while True:
        time.sleep(60)


def main():
    job = json.load(sys.stdin)
    if sys.argv[1] == "talk":
        with ThreadPoolExecutor(16) as pool:
            result = list(pool.map(talk, job))
    else:
        result = {"post": post_all, "flood": flood, "hold": hold}[sys.argv[1]](job)
    print(json.dumps(result))


main()
