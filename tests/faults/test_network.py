"""No network at run time: a whole run in processes that any use of it ends."""

import os
import subprocess
import sys

import pytest

from tests.test_launch import ROOT, TOY

# An audit hook sees every socket of a process, whatever library opens it in Python, and its
# workers begin with the same site. Local ones between processes of a run are no network.
GUARD = """
import os, sys

def guard(event, arguments):
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
    opens = event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
    if asks or (opens and arguments[0].family.name != "AF_UNIX"):
        os.write(2, f"network: {event} {arguments}\\n".encode())
        os._exit(99)

sys.addaudithook(guard)
"""
STAGES = "ingest,train,generate,segment,evaluate,explore,report"
SMALL = ("generate.count=9", "segment.updates=5", "phases[1].updates=5", "explore.pairs=9")


def _guarded(folder, *command):
    (folder / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    how = dict(cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    return subprocess.run([sys.executable, *map(str, command)], **how)


@pytest.mark.parametrize(
    "use",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET6).connect(('::1', 9))",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'a', ('127.0.0.1', 9))",
        "import socket; socket.socket().bind(('', 0))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_the_guard_sees_the_network(use, tmp_path):
    done = _guarded(tmp_path, "-c", use)
    assert done.returncode == 99 and "network: " in done.stderr


def test_a_whole_run_uses_no_network(tmp_path):
    fields = [f"--config.{field}" for field in (*SMALL, f"stages={STAGES}", "workers=2")]
    done = _guarded(tmp_path, ROOT / "launch.py", *TOY, *fields, "--workdir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
