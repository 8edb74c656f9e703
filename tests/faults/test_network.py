"""A whole run of hostile names, in processes that any use of a network ends."""

import os
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from skullgen.core import files
from skullgen.data import phantom
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


def _guarded(folder, *command):
    (folder / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    environment |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": "ascii"}
    how = dict(cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    return subprocess.run([sys.executable, *map(str, command)], **how)


NAMES = (
    b"\x1b[2J\x1b]0;mine\x07",
    "\u202egnp.exe".encode(),
    b"<img src=x onerror=alert(1)>",
    b"two\nlines\rand\ttabs",
    b"not \xff utf-8",
    rb"$\frac{1}$ $& {{body}} \u0041",
    "née 頭蓋 ' \" ; --config.seed=3".encode(),
)


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


def test_hostile_names_go_through_a_whole_run_without_a_network(tmp_path):
    """In a terminal that knows ASCII only: each skull's file has one of the names."""
    (tmp_path / "skulls").mkdir()
    folder = os.fsencode(tmp_path / "skulls")
    for number, name in enumerate(NAMES):
        image = nibabel.Nifti1Image(phantom.skull(number, 48).astype(np.uint8), phantom.affine(48))
        nibabel.save(image, tmp_path / "skull.nii")
        os.rename(tmp_path / "skull.nii", os.path.join(folder, name + b".nii"))
        open(os.path.join(folder, name + b".txt"), "w").close()
    work = tmp_path / "run"
    stages = "ingest,train,generate,segment,evaluate,explore,report"
    fields = {"stages": stages, "data.source": "skulls", "data.root": tmp_path / "skulls"}
    fields |= {"data.kinds": "random_1", "data.test_fraction": 0.4, "evaluate.cases": 9}
    fields |= {"generate.count": 9, "segment.updates": 5, "phases[0].updates": 5}
    fields |= {"phases[1].updates": 5, "explore.pairs": 9, "workers": 2}
    command = [*TOY, "--workdir", work, *(f"--config.{k}={value}" for k, value in fields.items())]
    done = _guarded(tmp_path, ROOT / "launch.py", *command)
    assert done.returncode == 0, done.stderr
    out, err = done.stdout, done.stderr
    assert not re.search(r"[^\n\r -~]", out + err)  # tqdm ends its lines with \r
    assert rf"note: \x1b[2J\x1b]0;mine\x07.txt and {len(NAMES) - 1} more: holds no skull" in out
    page = (work / "report.html").read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert "<img src=x" not in page and r"\u003cimg src=x" in page
    assert not re.search("[\x1b\x07\u202e\ud800-\udfff]", page) and r"\u202egnp" in page
    verdict = files.read_json(work / "metrics.json")["verdict"]
    skulls = {case["skull"] for case in verdict["cases"]} - {""}  # generated pairs have none
    assert len(skulls) == len(NAMES) and all(map(str.isprintable, skulls))
    assert (work / "figures" / "closest.png").exists() and (work / "maps.json").exists()
