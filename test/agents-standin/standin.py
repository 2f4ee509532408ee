#!/usr/bin/env python3
# Stands in for a coding agent: reads a task, mends a repository, runs its tests, and uses the network as agents do. Says everything on its terminal.
import os
import subprocess
import sys
import urllib.error
import urllib.request


def say(text):
    print(f"standin: {text}", flush=True)


def tests_pass():
    return subprocess.run([sys.executable, "-B", "-m", "unittest"], capture_output=True).returncode == 0


def ask(url, headers={}):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return f"{answer.status} {answer.read().decode().strip()}"
    except urllib.error.HTTPError as refusal:
        return f"{refusal.code} {refusal.read().decode().strip()}"
    except OSError as error:
        return f"failed: {error}"


task = " ".join(sys.argv[1:])
key = os.environ["STANDIN_KEY"]

say(f"my task: {task}")
say(f"the tests {'pass' if tests_pass() else 'fail'}")
say(f"a .env is {'here' if os.path.exists('.env') else 'not here'}")
with open("calc.py") as file:
    code = file.read()
with open("calc.py", "w") as file:
    file.write(code.replace("a - b", "a + b"))
with open("NOTES.md", "w") as file:
    file.write("The sum was a difference.\n")
say(f"after my change the tests {'pass' if tests_pass() else 'fail'}")
say(subprocess.run(["git", "status", "--short"], capture_output=True, text=True).stdout.split())

say(f"a place that nobody allowed: {ask('http://evil.test/upload')}")
say(f"my key is {key}")
say(f"the model: {ask('https://good.test/v1/models', {'Authorization': f'Bearer {key}'})}")
bell = subprocess.run(["sandbox-comm", "notify", "--title", "Done", "--body", "The sum is right."])
say(f"I rang the bell: {bell.returncode}")
say("I ask for a place")
say(f"the place that I asked for: {ask('http://www.good.test/docs')}")
say(f"goodbye, {input('standin: anything else? ')}")
sys.exit(3)
