# The bell's client for any python3 from 3.6 on, in one file without dependencies: asks the host to notify, play, run a listed command...
# client.cjs is the same in JavaScript; client.test.ts runs both through one table.
import sys

if not sys.flags.isolated and sys.path:
    # The folder of this file may be a project with files that are named like modules of the library.
    del sys.path[0]

import base64
import decimal
import errno
import http.client
import json
import os
import re
import select
import signal
import socket
import threading

VERSION = "0.1.0"
DEFAULT_URL = "http://host.docker.internal:9999/"
REQUEST_BYTES_MAX = 1024 * 1024
ANSWER_BYTES_MAX = 32 * 1024 * 1024
CONNECT_SECONDS_MAX = 10
# A person may be asked first.
ANSWER_SECONDS_MAX = 300
PING_SECONDS_MAX = 30
STDIN_WAIT_SECONDS = 1
CONFIG_BYTES_MAX = 64 * 1024
TITLE_CHARACTERS_MAX = 256
BODY_CHARACTERS_MAX = 4096
VARIABLES_MAX = 64
VARIABLE_BYTES_MAX = 4096
HOOK_BYTES_MAX = 64 * 1024

HELP = '''Asks the host of this sandbox to do something.

  sandbox-comm ping                                   is it there?
  sandbox-comm notify [--title TITLE] [--body BODY]   show a notification
  sandbox-comm play                                   play the host's sound
  sandbox-comm exec [--] COMMAND [ARGUMENT...]        run a command that the host lists
  sandbox-comm open-url URL [--callback-port PORT]    open a page in the host's browser
  sandbox-comm clipboard [TEXT]                       put a text, or what comes on stdin, on the host's clipboard
  sandbox-comm ACTION [JSON]                          an action of the host's owner

Options:
  --url URL            where the host listens (else SANDBOX_COMM_URL, a configuration file, http://host.docker.internal:9999/)
  --token TOKEN        who asks, where the host wants to know (else SANDBOX_COMM_TOKEN, a configuration file)
  --timeout SECONDS    how long to wait for the answer
  --best-effort        whatever happens: at most one line on stderr, and exit code 0
  --json               print the host's answer as JSON (ping, exec and actions)
  --stdin              exec: what comes on stdin is the command's stdin, up to its end
  --env-prefix PREFIX  exec: names of variables made of a hook's fields begin with this
  --help, --version

notify and exec take the JSON of a coding agent's hook on stdin. Configuration: ~/.config/sandbox-comm/config.toml or
/etc/sandbox-comm/config.toml with host, port, token.

Exit codes: 0 done, 1 the host refused or failed, 2 wrong usage, 69 the host is not reached; exec: the command's own.
'''


class Ending(Exception):
    """What ends the program before its end: an exit code and why."""

    def __init__(self, code, message):
        Exception.__init__(self, message)
        self.code = code
        self.message = message


def usage(message):
    return Ending(2, message + "; sandbox-comm --help tells more")


def unreached(message):
    return Ending(69, message)


class State:
    best_effort = False
    notes = []


def say(message):
    """For a person, on stderr: text of others without what could steer a terminal."""
    text = clean(message).strip()
    if State.best_effort:
        State.notes.append(re.sub(r"\s+", " ", text))
    else:
        write(2, encoded("sandbox-comm: " + text + "\n"))


def clean(text):
    shown = re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text)
    return shown[:8192] + "..." if len(shown) > 8192 else shown


def leave(code):
    if State.best_effort and State.notes:
        write(2, encoded("sandbox-comm: " + "; ".join(State.notes) + "\n"))
    # Nothing waits for a thread or a buffer: all that was written is out.
    os._exit(0 if State.best_effort else code)


def encoded(text):
    return text.encode("utf-8", "replace")


def write(descriptor, data):
    view = memoryview(data)
    while len(view) > 0:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError as error:
            os._exit(0 if State.best_effort else 141 if isinstance(error, BrokenPipeError) else 1)


def json_object(text):
    def refuse(_):
        raise ValueError()

    try:
        value = json.loads(text, parse_constant=refuse, parse_int=lambda it: js_number(float(it)), parse_float=lambda it: js_number(float(it)))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def js_number(value):
    """A number of JSON as JavaScript has it: whole numbers are written without a fraction, none are beyond a double."""
    if value in (float("inf"), float("-inf")):
        return None
    if value != int(value) or abs(value) >= 1e21:
        return value
    return int(value) if abs(value) < 2**53 else int(decimal.Decimal(repr(value)))


def dump(value):
    """JSON as JavaScript writes it."""
    if isinstance(value, dict):
        return "{" + ",".join(dump(key) + ":" + dump(it) for key, it in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return re.sub("[\ud800-\udfff]", lambda it: "\\u%04x" % ord(it.group()), text)
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", repr(value))
    return json.dumps(value)


def printable(text):
    """JSON that is safe to print, in one line. What is escaped here can only be within strings, but for the white space."""
    text = re.sub("[\n\r\t]", " ", text.strip())
    return re.sub(
        "[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]",
        lambda it: "\\u%04x" % ord(it.group()),
        text,
    )


# The command line

VALUED = ["url", "token", "timeout", "title", "body", "callback-port", "env-prefix"]
FLAGS = ["best-effort", "json", "stdin"]
OPTION_OF = [
    ("title", "notify"),
    ("body", "notify"),
    ("callback-port", "open_url"),
    ("env-prefix", "exec"),
    ("stdin", "exec"),
]


def parse_command_line(argv):
    """Gives options, words and, for a shim, its name and arguments."""
    options = {}
    words = []
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            words += argv[at:]
            break
        if word in ("-h", "--help"):
            return options, ["--help"], None
        if word == "--version":
            return options, ["--version"], None
        if word == "--as":
            if at >= len(argv):
                raise usage("--as needs a name")
            return options, [], (argv[at], argv[at + 1 :])
        if word.startswith("-") and word != "-":
            name, equals, value = word[2:].partition("=")
            if not word.startswith("--") or name not in VALUED + FLAGS:
                raise usage("there is no option " + word)
            if name in FLAGS:
                if equals:
                    raise usage("--%s takes no value" % name)
                options[name] = True
            elif equals:
                options[name] = value
            else:
                if at >= len(argv):
                    raise usage("--%s needs a value" % name)
                options[name] = argv[at]
                at += 1
            continue
        words.append(word)
        # What follows the command is its own.
        if words[0] == "exec" and len(words) == 2:
            words += argv[at:]
            break
    return options, words, None


def number_of(options, name, least, most):
    text = options.get(name)
    if text is None:
        return None
    if not re.match(r"[0-9]{1,6}\Z", text) or not least <= int(text) <= most:
        raise usage("--%s must be a number from %d to %d" % (name, least, most))
    return int(text)


# Where the host is


class Target:
    def __init__(self, text, name):
        match = re.match(
            r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(/[!-~]*)?\Z",
            text if "://" in text else "http://" + text,
            re.I,
        )
        self.port = int(match.group(2) or 80) if match else 0
        if not 1 <= self.port <= 65535:
            raise usage("%s must be an address such as %s, not %s" % (name, DEFAULT_URL, text))
        self.authority = match.group(1) if match.group(2) is None else "%s:%d" % (match.group(1), self.port)
        self.path = match.group(3) or "/"
        self.host = match.group(1).strip("[]")
        self.href = "http://" + self.authority + self.path


def read_config():
    """host, port and token of the first configuration file that there is. What is wrong in it is said, and left out."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    if not home.startswith("/"):
        home = os.environ.get("HOME", "") and os.environ["HOME"] + "/.config"
    files = [home + "/sandbox-comm/config.toml"] if home else []
    for file in files + ["/etc/sandbox-comm/config.toml"]:
        try:
            with open(file, "rb") as opened:
                data = opened.read(CONFIG_BYTES_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            say("%s cannot be read; going on without it" % file)
            continue
        if len(data) > CONFIG_BYTES_MAX:
            say("%s is longer than %d bytes; going on without it" % (file, CONFIG_BYTES_MAX))
            continue
        return config_of(data.decode("utf-8", "replace"), file)
    return {}


GOOD = {"host": r"(\[?[0-9A-Fa-f:.]+\]?|[A-Za-z0-9._-]+)\Z", "token": r"[!-~]+\Z"}
WANTED = {"host": "a name in quotes", "port": "a number from 1 to 65535", "token": "a word in quotes"}


def config_of(text, file):
    config = {}
    for index, line in enumerate(text.split("\n")):
        if re.match(r"""\s*\[{1,2}[A-Za-z0-9_."' -]+\]{1,2}\s*(#.*)?\Z""", line):
            break
        match = re.match(r"\s*(host|port|token)\s*=\s*(.*?)\s*\Z", line)
        if match is None:
            continue
        key = match.group(1)
        value = toml_value(match.group(2))
        if key == "port":
            well = isinstance(value, int) and 1 <= value <= 65535
        else:
            well = isinstance(value, str) and re.match(GOOD[key], value)
        if well:
            config[key] = value
        else:
            say("%s, line %d: %s must be %s; going on without it" % (file, index + 1, key, WANTED[key]))
    return config


def toml_value(text):
    """Of TOML only what these keys need: strings in one line and whole numbers."""
    literal = re.match(r"'([^']*)'\s*(#.*)?\Z", text)
    if literal:
        return literal.group(1)
    number = re.match(r"\+?([0-9][0-9_]{0,9})\s*(#.*)?\Z", text)
    if number:
        return int(number.group(1).replace("_", ""))
    basic = re.match(r'("(?:[^"\\]|\\.)*")\s*(#.*)?\Z', text)
    try:
        return json.loads(basic.group(1)) if basic else None
    except ValueError:
        return None


class Route:
    """The target, who asks, and the way there."""

    def __init__(self, options):
        config = read_config()
        self.token = options.get("token") or os.environ.get("SANDBOX_COMM_TOKEN") or config.get("token")
        if self.token is not None and not re.match(GOOD["token"], self.token):
            raise usage("the token must be one word of visible characters")
        if "url" in options:
            self.target = Target(options["url"], "--url")
        elif os.environ.get("SANDBOX_COMM_URL"):
            self.target = Target(os.environ["SANDBOX_COMM_URL"], "SANDBOX_COMM_URL")
        else:
            host = config.get("host", "host.docker.internal")
            if ":" in host and not host.startswith("["):
                host = "[%s]" % host
            url = "http://%s:%d/" % (host, config.get("port", 9999))
            self.target = Target(url, "host in the configuration file")
        self.proxy = proxy_for(self.target)

    def __str__(self):
        if self.proxy is None:
            return self.target.href
        return "%s through the proxy %s:%d" % ((self.target.href,) + self.proxy[:2])

    def advice(self):
        host = "localhost" if self.target.host == "host.docker.internal" else self.target.host
        name = "%s:%d" % (host, self.target.port)
        return (
            "Does it run on the host (glovebox bell status), and may this sandbox reach it? There: "
            "glovebox policy allow network %s (Docker's sandboxes: sbx policy allow network %s)" % (name, name)
        )


def proxy_for(target):
    """The HTTP proxy that the environment names for this target: host, port, user."""
    env = os.environ
    text = env.get("http_proxy") or env.get("HTTP_PROXY")
    if not text or target.host in ("localhost", "::1") or target.host.startswith("127."):
        return None
    if is_direct(target.host.lower(), target.port, env.get("no_proxy") or env.get("NO_PROXY") or ""):
        return None
    match = re.match(
        r"(?:http://)?(?:([^@/]*)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?\Z", text, re.I
    )
    if match is None:
        say("the proxy in http_proxy is not one for HTTP; going on without it")
        return None
    user = match.group(1)
    if user is not None:
        user = re.sub(
            rb"%([0-9A-Fa-f]{2})", lambda it: bytes([int(it.group(1), 16)]), user.encode("utf-8", "surrogateescape")
        )
    return match.group(2).strip("[]"), int(match.group(3) or 80), user


def is_direct(host, port, exceptions):
    for entry in re.split(r"[\s,]+", exceptions.lower()):
        if entry == "*":
            return True
        network = re.match(r"([0-9.]+)/([0-9]{1,2})\Z", entry)
        if network:
            if in_network(host, network.group(1), int(network.group(2))):
                return True
            continue
        name, entry_port = re.match(r"(.*?)(?::([0-9]+))?\Z", entry).groups()
        if entry_port is not None and int(entry_port) != port:
            continue
        suffix = re.sub(r"^\*?\.", "", name)
        if suffix != "" and (host == suffix or host.endswith("." + suffix)):
            return True
    return False


def in_network(host, network, bits):
    a, b = ipv4(host), ipv4(network)
    return a is not None and b is not None and bits <= 32 and a >> (32 - bits) == b >> (32 - bits)


def ipv4(text):
    match = re.match(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\Z", text)
    parts = [int(it) for it in match.groups()] if match else [256]
    if max(parts) > 255:
        return None
    return parts[0] << 24 | parts[1] << 16 | parts[2] << 8 | parts[3]


# What comes on stdin


def read_stdin(to_the_end):
    """What is there on stdin: up to its end, or, unless to_the_end, to the first second without anything, since it may stay open for ever.

    A terminal is never read.
    """
    data = b""
    if os.isatty(0):
        return data
    while to_the_end or select.select([0], [], [], STDIN_WAIT_SECONDS)[0]:
        try:
            piece = os.read(0, 65536)
        except BlockingIOError:
            select.select([0], [], [])
            continue
        except OSError:
            break
        if piece == b"":
            break
        data += piece
        if len(data) > REQUEST_BYTES_MAX:
            raise Ending(2, "stdin has more than %d bytes" % REQUEST_BYTES_MAX)
    return data


def utf8(data):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def stdin_text():
    text = utf8(read_stdin(True))
    if text is None:
        raise Ending(2, "stdin has to be text in UTF-8")
    return text


def hook_payload():
    """A hook's payload, text and fields: None when there is none. ValueError for what is no JSON object."""
    text = utf8(read_stdin(False))
    if text is not None and text.strip() == "":
        return None
    fields = None if text is None else json_object(text)
    if fields is None:
        raise ValueError()
    return text.strip(), fields


DENIED = re.compile(
    r"^(PATH|HOME|SHELL|IFS|ENV|BASH_ENV|PS4|PROMPT_COMMAND|JAVA_TOOL_OPTIONS|MAKEFLAGS|EDITOR|PAGER|VISUAL)\Z"
    r"|^(LD_|DYLD_|GIT_|SSH_|PYTHON|NODE_|NPM_CONFIG_|PERL5|RUBY)|_PROXY\Z"
)


def environment_of(payload, prefix):
    """A hook's fields as variables. An agent chooses their names: the host leaves out what steers programs, too."""
    text, fields = payload
    variables = {}
    left_out = []
    for key, value in fields.items():
        if value is None:
            continue
        upper = re.sub("[^A-Z0-9_]", "_", re.sub("[a-z]", lambda it: it.group().upper(), key))
        name = re.sub(r"^(?=[0-9]|\Z)", "_", prefix + upper)
        words = value if isinstance(value, str) else dump(value)
        if DENIED.search(name) or "\0" in words or len(variables) >= VARIABLES_MAX - 1:
            left_out.append(name)
        else:
            # A character that is cut through is left out.
            variables[name] = encoded(words)[:VARIABLE_BYTES_MAX].decode("utf-8", "ignore")
    if len(text.encode("utf-8")) > HOOK_BYTES_MAX:
        left_out.append("HOOK_JSON")
    else:
        variables["HOOK_JSON"] = text
    if left_out:
        say("left out of the environment: " + ", ".join(left_out))
    return variables


# What is asked of the host


class Request:
    def __init__(self, action, args=None, shows=False):
        self.action = action
        self.args = args
        # Its result is for whoever asked.
        self.shows = shows


def request_of(options, words, shim):
    if shim is not None:
        return request_of_shim(shim[0], shim[1], options)
    if not words:
        raise usage("say what the host is to do")
    verb, rest = words[0], words[1:]
    action = verb.replace("-", "_")
    for option, only in OPTION_OF:
        if option in options and action != only:
            raise usage("--%s is for %s" % (option, only.replace("_", "-")))

    def at_most(count):
        if len(rest) > count:
            raise usage("%s takes no %s" % (verb, rest[count]))

    if action in ("ping", "play"):
        at_most(0)
        return Request(action)
    if action == "notify":
        at_most(0)
        return notify_request(options)
    if action == "exec":
        if not rest:
            raise usage("exec needs a command")
        return exec_request(rest, options)
    at_most(1)
    if action == "open_url":
        if not rest:
            raise usage("open-url needs an address")
        port = number_of(options, "callback-port", 1024, 65535)
        args = {"url": rest[0]}
        if port is not None:
            args["callback_port"] = port
        return Request(action, args)
    if action == "clipboard":
        return clipboard_request(rest[0] if rest else None)
    if not re.match(r"[a-z][a-z0-9_]{0,63}\Z", action):
        raise usage("%s cannot be the name of an action" % verb)
    args = json_object(rest[0]) if rest else {}
    if args is None:
        raise usage("""what %s is given must be a JSON object such as '{"a":1}'""" % verb)
    return Request(action, args, True)


def clipboard_request(given=None):
    if given is not None:
        return Request("clipboard", {"text": given})
    if os.isatty(0):
        raise usage("clipboard needs a text, or one on stdin")
    return Request("clipboard", {"text": stdin_text()})


def notify_request(options):
    fields = {}
    try:
        payload = hook_payload()
        if payload is not None:
            fields = payload[1]
    except ValueError:
        say("stdin is no JSON object; going on without it")

    def text(*names):
        found = [fields.get(it) for it in names]
        return next((it for it in found if isinstance(it, str) and it.strip() != ""), None)

    title = options.get("title", text("title"))
    if title is None:
        title = "Claude Code" if text("hook_event_name") else "sandbox"
    said = text("message", "last_assistant_message", "reason", "prompt", "tool_name", "hook_event_name")
    body = options.get("body", said) or ""
    return Request("notify", {"title": title[:TITLE_CHARACTERS_MAX], "body": body[:BODY_CHARACTERS_MAX]})


def exec_request(command, options):
    if "stdin" in options:
        return Request("exec", {"command": command, "stdin": stdin_text()})
    prefix = options.get("env-prefix", "")
    if not re.match(r"([A-Za-z_][A-Za-z0-9_]{0,63})?\Z", prefix):
        raise usage("--env-prefix must be a name such as HOOK_")
    args = {"command": command}
    try:
        payload = hook_payload()
    except ValueError:
        raise Ending(2, "stdin is no JSON object; with --stdin it goes to the command as it is")
    if payload is not None:
        args["env"] = environment_of(payload, prefix.upper())
    return Request("exec", args)


# Programs that the client stands for on the PATH of a guest


def request_of_shim(name, args, options):
    if name == "notify-send":
        return notify_send(args)
    if name in ("paplay", "aplay", "afplay", "mpg123"):
        return Request("play")
    if name in ("xdg-open", "open", "sensible-browser", "www-browser"):
        url = next((it for it in args if re.match(r"https?://", it, re.I)), None)
        if url is None:
            raise Ending(1, "%s: only http and https addresses can be opened" % name)
        return Request("open_url", {"url": url})
    if name in ("wl-copy", "xclip", "xsel", "pbcopy", "wl-paste", "pbpaste"):
        return copy(name, args)
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", name):
        raise usage("%s cannot be the name of a command" % name)
    request = Request("exec", {"command": [name] + args})
    if "stdin" in options:
        request.args["stdin"] = stdin_text()
    return request


def notify_send(args):
    words = []
    at = 0
    while at < len(args):
        word = args[at]
        at += 1
        if word == "--":
            words += args[at:]
            break
        if re.match(
            r"(-[utaichrnA]|--(urgency|expire-time|app-name|icon|app-icon|category|hint|replace-id|action))\Z", word
        ):
            at += 1
        elif not word.startswith("-") or word == "-":
            words.append(word)
    if not words:
        raise Ending(1, "notify-send: no summary specified")
    body = " ".join(words[1:])
    return Request("notify", {"title": words[0][:TITLE_CHARACTERS_MAX], "body": body[:BODY_CHARACTERS_MAX]})


READING = {"xclip": r"-o", "xsel": r"(-[a-z]*o[a-z]*|--output)\Z"}
TRIMMING = {"wl-copy": r"(-n|--trim-newline)\Z", "xclip": r"-r"}


def copy(name, args):
    """A program for the clipboard: only its writing half."""

    def has(pattern):
        return pattern is not None and any(re.match(pattern, it) for it in args)

    words = []
    at = 0
    while at < len(args):
        if name == "wl-copy" and re.match(r"(-[ts]|--type|--seat)\Z", args[at]):
            at += 1
        elif not args[at].startswith("-"):
            words.append(args[at])
        at += 1
    if name.endswith("paste") or has(READING.get(name)):
        raise Ending(1, "%s: a sandbox cannot read the host's clipboard" % name)
    if name == "wl-copy" and has(r"(-c|--clear)\Z"):
        text = ""
    elif name == "wl-copy" and words:
        text = " ".join(words)
    else:
        text = clipboard_request().args["text"]
    if has(TRIMMING.get(name)):
        text = re.sub(r"\n\Z", "", text)
    return Request("clipboard", {"text": text})


# The conversation


def post(route, body, accept, seconds):
    """Sends the request, gives the answer's head; its body is read by whoever wants it."""
    host, port = route.proxy[:2] if route.proxy else (route.target.host, route.target.port)
    path = route.target.href if route.proxy else route.target.path
    headers = {
        "Host": route.target.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Accept": accept,
        "User-Agent": "sandbox-comm/" + VERSION,
        "Connection": "close",
    }
    if route.token is not None:
        headers["Authorization"] = "Bearer " + route.token
    if route.proxy and route.proxy[2] is not None:
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(route.proxy[2]).decode()
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS_MAX)
    try:
        connected = after(CONNECT_SECONDS_MAX, lambda: "%s: %s. %s" % (route, reason_of(socket.timeout()), route.advice()))
        connection.connect()
        connected()
        connection.sock.settimeout(seconds)
        try:
            connection.request("POST", path, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # It may have answered before it had heard all.
            pass
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise unreached("%s: %s. %s" % (route, reason_of(error), route.advice()))


def after(seconds, message):
    """Ends the program then, whatever it waits for; the function that is given back calls it off."""

    def end():
        say(message())
        leave(69)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        # No more processes here; the socket's own limit has to do.
        pass
    return timer.cancel


def reason_of(error):
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, socket.gaierror):
        return "this name is not known here"
    if isinstance(error, socket.timeout):
        return "no connection within %d seconds" % CONNECT_SECONDS_MAX
    if isinstance(error, (ConnectionError, http.client.RemoteDisconnected)):
        return "the connection was lost"
    if isinstance(error, http.client.HTTPException):
        return "what answers there does not speak HTTP"
    return "no connection (%s)" % errno.errorcode.get(error.errno, error.errno)


def converse(request, options, route):
    action = request.action
    seconds = number_of(options, "timeout", 1, 86400)
    if seconds is None:
        seconds = {"ping": PING_SECONDS_MAX, "exec": None}.get(action, ANSWER_SECONDS_MAX)
    asked = {"action": action}
    if request.args is not None:
        asked["args"] = request.args
    body = dump(asked).encode("utf-8")
    if len(body) > REQUEST_BYTES_MAX:
        raise Ending(2, "this is more than %d bytes" % REQUEST_BYTES_MAX)
    if seconds is not None:
        after(seconds, lambda: "%s: no answer within %d seconds" % (route.target.href, seconds))
    streams = action == "exec" and "json" not in options
    answer = post(route, body, "application/x-ndjson, application/json" if streams else "application/json", seconds)
    try:
        if answer.status == 200 and answer.getheader("Content-Type", "").startswith("application/x-ndjson"):
            return relay(answer, request)
        return conclude(answer.status, whole(answer), request, options, route)
    except (OSError, http.client.HTTPException):
        raise unreached("%s: the connection was lost before the end of the answer" % route.target.href)


def whole(answer):
    data = answer.read(ANSWER_BYTES_MAX + 1)
    if len(data) > ANSWER_BYTES_MAX:
        raise Ending(1, "the answer has more than %d bytes" % ANSWER_BYTES_MAX)
    if answer.length:
        raise http.client.IncompleteRead(data)
    return data.decode("utf-8", "replace")


def relay(answer, request):
    """The output of a command as it comes. Gives its exit code."""
    while True:
        line = answer.readline(ANSWER_BYTES_MAX + 1)
        if len(line) > ANSWER_BYTES_MAX:
            raise Ending(1, "a line of the answer has more than %d bytes" % ANSWER_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise unreached("the connection was lost before the end of the command; how that went is not known")
        if line.strip() == b"":
            continue
        event = json_object(line.decode("utf-8", "replace"))
        if event is None:
            raise Ending(1, "the answer is not to be understood")
        kind = event.get("type")
        if kind in ("stdout", "stderr") and not isinstance(event.get("data"), str):
            raise Ending(1, "the answer is not to be understood")
        if kind in ("stdout", "stderr"):
            data = event.get("data")
            data = base64.b64decode(data) if event.get("encoding") == "base64" else data.encode("utf-8", "replace")
            write(1 if kind == "stdout" else 2, data)
        elif kind == "exit":
            if event.get("timed_out") is True:
                say("the host ended the command: its time was over")
            return exit_code(event.get("code"), request)
        elif kind == "error":
            raise Ending(1, str(event.get("error")))


def exit_code(code, request):
    if type(code) is not int or not 0 <= code <= 255:
        raise Ending(1, "the answer tells no exit code of the command")
    if State.best_effort and code != 0:
        say("%s: exit code %d" % (request.args["command"][0], code))
    return code


WHO_ASKS = (
    "Set SANDBOX_COMM_TOKEN to a token of this host; its owner makes one with: glovebox bell token add NAME"
)


def conclude(status, text, request, options, route):
    """An answer in one piece: what it says, and the exit code that follows."""
    reply = json_object(text)
    well = 200 <= status < 300
    who = "\n" + WHO_ASKS if status == 401 else ""
    if reply is None or (not well and not isinstance(reply.get("error"), str)):
        shown = "" if text.strip() == "" else "\n" + text.rstrip()
        if status in (403, 407, 502, 503, 504):
            raise unreached("%s: answered %d%s\n%s" % (route.target.href, status, shown, route.advice()))
        raise Ending(1, "%s: answered %d, and not as the host's bell does%s%s" % (route.target.href, status, shown, who))
    if "json" in options and request.action not in ("notify", "play"):
        write(1, encoded(printable(text) + "\n"))
    failed = not well or reply.get("ok") is False or reply.get("status") == "error"
    if failed:
        said = reply.get("error")
        say((said if isinstance(said, str) else "answered %d" % status) + who)
    if request.action == "exec":
        result = reply.get("result")
        result = result if isinstance(result, dict) else reply
        code = next((it for it in (result.get("exit_code"), reply.get("exit_code"), reply.get("returncode")) if it is not None), None)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            output = result.get(name)
            output = reply.get(name) if output is None else output
            if isinstance(output, str) and "json" not in options:
                write(descriptor, encoded(output))
        if not failed or code is not None:
            return exit_code(code, request) or int(failed)
    if failed:
        return 1
    if "json" not in options and request.action == "ping":
        write(1, b"pong\n")
    if "json" not in options and request.shows and reply.get("result") is not None:
        write(1, encoded(printable(dump(reply["result"])) + "\n"))
    return 0


def run(argv):
    named = argv[: argv.index("--")] if "--" in argv else argv
    try:
        options, words, shim = parse_command_line(argv)
    except Ending:
        State.best_effort = "--best-effort" in named
        raise
    State.best_effort = "best-effort" in options
    if words == ["--help"]:
        write(1, encoded(HELP))
    elif words == ["--version"]:
        write(1, encoded("sandbox-comm %s (Glovebox)\n" % VERSION))
    else:
        route = Route(options)
        return converse(request_of(options, words, shim), options, route)
    return 0


def main():
    # What is closed must not become the connection.
    while os.open("/dev/null", os.O_RDWR) < 3:
        pass
    # The end of this process closes its connection, which ends the command on the host.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    try:
        code = run([os.fsencode(it).decode("utf-8", "replace") for it in sys.argv[1:]])
    except Ending as error:
        say(error.message)
        code = error.code
    except Exception as error:
        say("unexpected: %s" % error)
        code = 1
    leave(code)


if __name__ == "__main__":
    main()
