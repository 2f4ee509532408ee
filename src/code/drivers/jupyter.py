# A kernel of Jupyter, whatever its language, through Jupyter's own client: `python3 -c THIS LANGUAGE`. As ./python.py on stdin and stdout.
# Ends with 64 where there is no Jupyter, or no kernel for the language.
import importlib.util, json, os, signal, sys

if importlib.util.find_spec("jupyter_client") is None:
    sys.exit(64)

from queue import Empty

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

language = sys.argv[-1]


def kernel_name():
    names = sorted(
        name
        for name, found in KernelSpecManager().get_all_specs().items()
        if found["spec"].get("language", "").lower() == language
    )
    # Many images have one more that is made for the purpose.
    return next((name for name in names if name != "python3"), names[0] if names else None)


name = kernel_name()
if name is None:
    sys.exit(64)

wanted = os.fdopen(os.dup(0), "rb", buffering=0)
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
rest = bytearray()


def field():
    while True:
        end = rest.find(0)
        if end >= 0:
            text = rest[:end].decode("utf-8", "replace")
            del rest[: end + 1]
            return text
        piece = wanted.read(65536)
        if not piece:
            raise EOFError
        rest.extend(piece)


mark = field()
field()


def put(lane, data):
    while data:
        data = data[os.write(lane, data) :]


def tell(message, lanes=(1,)):
    text = json.dumps(message)
    pieces = [text[at : at + 3500] for at in range(0, len(text), 3500)]
    for lane in lanes:
        for index, piece in enumerate(pieces):
            more = "+" if index < len(pieces) - 1 else ""
            put(lane, f"\0{mark}{more}{piece}\0".encode())


manager = KernelManager(kernel_name=name)


def interrupt(*_):
    # The kernel has had the signal as well, unless it wants a message instead.
    if manager.kernel_spec is not None and manager.kernel_spec.interrupt_mode == "message":
        manager.interrupt_kernel()


signal.signal(signal.SIGINT, interrupt)
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=120)
tell({"ready": True})


def text_of(kind, value):
    if isinstance(value, str):
        return value
    return "".join(value) if isinstance(value, list) and kind.startswith("text/") else json.dumps(value)


def run(code, end):
    request = client.execute(code, store_history=True, allow_stdin=False)
    idle = False
    while not idle:
        try:
            message = client.get_iopub_msg(timeout=1)
        except Empty:
            if manager.is_alive():
                continue
            why = "the kernel has died"
            end.update(code=1, error={"ename": "DeadKernelError", "evalue": why, "traceback": [why]})
            return False
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            put(2 if content["name"] == "stderr" else 1, content["text"].encode())
        elif kind in ("execute_result", "display_data"):
            tell({"result": {each: text_of(each, value) for each, value in content["data"].items()}})
        elif kind == "error":
            end.update(code=1, error={key: content[key] for key in ("ename", "evalue", "traceback")})
        elif kind == "execute_input":
            end["count"] = content["execution_count"]
        elif kind == "status" and content["execution_state"] == "idle":
            idle = True
    return True


try:
    alive = True
    while alive:
        try:
            id, folder, code = field(), field(), field()
        except EOFError:
            break
        tell({"begin": id}, (1, 2))
        end = {"end": id, "code": 0}
        if folder:
            # No language of kernels has a common word for it; the one place that all share is where they were started.
            why = "a kernel stays in the folder where it was started"
            end.update(code=1, error={"ename": "ValueError", "evalue": why, "traceback": [why]})
        else:
            alive = run(code, end)
        if not alive:
            end["last"] = True
        tell(end, (1, 2))
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
