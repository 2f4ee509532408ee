# Python that lives from run to run: `python3 -c THIS`, with its runs on stdin; ../frames.ts tells what it says of them.
# On stdin each field ends with NUL: once the mark and nothing; then for each run its id, a folder or nothing, and the code.
import ast, asyncio, builtins, json, linecache, os, signal, sys, traceback


def main():
    wanted = os.fdopen(os.dup(0), "rb", buffering=0)
    out = {1: os.dup(1), 2: os.dup(2)}
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    me = os.getpid()
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

    def tell(message, lanes=(1,)):
        sys.stdout.flush()
        sys.stderr.flush()
        text = json.dumps(message)
        # A write of this size is not torn by what others write to the same pipe.
        pieces = [text[at : at + 3500] for at in range(0, len(text), 3500)]
        for lane in lanes:
            for index, piece in enumerate(pieces):
                more = "+" if index < len(pieces) - 1 else ""
                whole = f"\0{mark}{more}{piece}\0".encode()
                while whole:
                    whole = whole[os.write(out[lane], whole) :]

    shown = {
        "text/html": "_repr_html_",
        "text/markdown": "_repr_markdown_",
        "text/latex": "_repr_latex_",
        "image/svg+xml": "_repr_svg_",
        "image/png": "_repr_png_",
        "image/jpeg": "_repr_jpeg_",
        "application/json": "_repr_json_",
    }

    def plain(kind, value):
        if isinstance(value, tuple):
            value = value[0]
        if isinstance(value, (bytes, bytearray)):
            from base64 import b64encode

            return b64encode(value).decode()
        return value if isinstance(value, str) else json.dumps(value)

    def described(value):
        kinds = {"text/plain": repr(value)}
        if isinstance(value, type):
            return kinds
        bundle = getattr(value, "_repr_mimebundle_", None)
        told = bundle() if callable(bundle) else None
        if isinstance(told, tuple):
            told = told[0]
        for kind, each in (told or {}).items():
            kinds[kind] = plain(kind, each)
        for kind, name in shown.items():
            method = getattr(value, name, None)
            each = method() if callable(method) and kind not in kinds else None
            if each is not None:
                kinds[kind] = plain(kind, each)
        return kinds

    def display(*values):
        for value in values:
            tell({"result": described(value)})

    builtins.display = display

    def figures():
        plots = sys.modules.get("matplotlib.pyplot")
        if plots is None:
            return
        from io import BytesIO

        for number in plots.get_fignums():
            figure = plots.figure(number)
            image = BytesIO()
            figure.savefig(image, format="png", bbox_inches="tight")
            tell({"result": {"text/plain": repr(figure), "image/png": plain("image/png", image.getvalue())}})
        plots.close("all")

    os.environ.setdefault("MPLBACKEND", "Agg")
    module = type(sys)("__main__")
    space = module.__dict__
    space["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.path.insert(0, "")
    loop = None

    def evaluate(code):
        nonlocal loop
        value = eval(code, space)
        if code.co_flags & 0x80:
            if loop is None:
                loop = asyncio.new_event_loop()
                asyncio.set_event_loop(loop)
            value = loop.run_until_complete(value)
        return value

    def run(text, count):
        name = f"<cell {count}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = ast.parse(text, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not text.rstrip().endswith(";") else None
        if tree.body:
            evaluate(compile(tree, name, "exec", flags))
        if last is not None:
            value = evaluate(compile(ast.Expression(last.value), name, "eval", flags))
            if value is not None:
                space["_"] = value
                display(value)
        figures()

    def problem(error, count):
        ours = error.__traceback__
        while ours is not None and ours.tb_frame.f_code.co_filename == "<string>":
            ours = ours.tb_next
        lines = traceback.format_exception(type(error), error, ours)
        return {"ename": type(error).__name__, "evalue": str(error), "traceback": "".join(lines).splitlines()}

    tell({"ready": True})
    count = 0
    while True:
        try:
            id, folder, text = field(), field(), field()
        except EOFError:
            return
        # As `exit()` has left it.
        if sys.stdin.closed:
            sys.stdin = open(os.devnull)
        tell({"begin": id}, (1, 2))
        count += 1
        end = {"end": id, "code": 0, "count": count}
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                if folder:
                    os.chdir(folder)
                run(text, count)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except BaseException as error:
            end["code"] = 130 if isinstance(error, KeyboardInterrupt) else 1
            end["error"] = problem(error, count)
        # A child that the code has made and that came back here.
        if os.getpid() != me:
            sys.stdout.flush()
            os._exit(0)
        tell(end, (1, 2))


main()
