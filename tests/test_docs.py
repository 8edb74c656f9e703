"""What README and docs show is run as shown: Python as it stands, commands at size smoke.

bash runs each block with stand-ins for `python`, `pip`, `srun` and `sbatch` that note how they are
called; a noted `python launch.py` is then run in this process, with boxes for phantoms. The quick
tests leave out the stages in LONG; `pytest -m slow` runs all.
"""

import hashlib
import importlib.util
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import jax
import nibabel
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from experiments import vae_wgan
from skullgen.core import plugins
from skullgen.data import defects, phantom, volumes
from skullgen.evaluation import judges
from skullgen.run import config as command
from skullgen.run import stages, sweep, workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "extending.md"]  # tests/test_extending.py runs it
LONG = {
    "train",
    "segment",
    "evaluate",
    "explore",
    "gallery",
    "report",
}  # what quick tests leave out
SMALLER = {  # what a run of 20 generated and 30 real pairs of 16^3 has not
    ":all:200": ":all:20",
    "model.resolution=32": "model.resolution=16",
    "control_pairs=1000": "control_pairs=4",
    "generate.count=5000": "generate.count=20",
    "generate.count=10000": "generate.count=20",
    "evaluate.cases=30": "evaluate.cases=3",
    "segment.updates=400": "segment.updates=2",
}
NAMES = ["brainweb_41", "brainweb_46", "brainweb_50", "brainweb_06", "brainweb_44", "a", "b", "c"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A clone's folder, with a finished run, skulls, CTs, and SkullBreak's own layout."""
    home = tmp_path_factory.mktemp("home")
    for name in ("launch.py", "experiments", "tests", "docs", "pyproject.toml"):
        (home / name).symlink_to(ROOT / name)
    for folder in ("SKULLS", "CTS"):
        (home / folder).mkdir()
    for number, name in enumerate(NAMES):
        skull, affine = phantom.skull(number, 32), phantom.affine(32)
        volumes.write(home / "SKULLS" / f"{name}.nii.gz", skull, affine)
        pair = defects.cut(phantom.skull(number, 48), "random_1", number, voxel_mm=204.8 / 48)
        part = home / "SKULLBREAK" / ("test" if name == "c" else "train")
        for side, mask in zip(("defective_skull", "implant"), pair, strict=True):
            volumes.write(part / side / "random_1" / f"00{number}.nrrd", mask, phantom.affine(48))
            side = side.removesuffix("_skull")
            volumes.write(home / "PAIRS" / name / f"{side}.nii.gz", mask, phantom.affine(48))
        hu = np.where(skull, 900, -50).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(hu, affine), home / "CTS" / f"{name}.nii.gz")
    defective, _ = defects.cut(phantom.skull(0, 64), "bilateral", 1, voxel_mm=3.2)
    volumes.write(home / "DEFECTIVE.nii.gz", defective, phantom.affine(64))
    config = vae_wgan.get_config("smoke")
    config.stages, config.workers = ("ingest", "train", "generate", "segment", "evaluate"), 1
    config.data.source = "tests.toy_source"
    config.segment.updates, config.evaluate.cases, config.evaluate.rules = 2, 1, False
    workdir.run(config, home / "runs" / "vae_wgan")
    stubs = home / "stubs"
    stubs.mkdir()
    noted = 'printf "%q " "${0##*/}" "$@" >> "$NOTED"; echo >> "$NOTED"\n'
    after = 'while [ "${1#-}" != "$1" ]; do shift; done; "$@"\n'
    for name, text in {"python": "", "pip": "", "sbatch": 'echo "1;here"\n', "srun": after}.items():
        (stubs / name).write_text(f"#!/bin/bash\n{noted}{text}")
        (stubs / name).chmod(0o755)
    return home


def _text(path):
    return path.read_text(encoding="utf-8")


def _blocks(page):
    """(line, language, text) of each fenced block."""
    text = _text(page)
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M):
        yield text[: block.start()].count("\n") + 2, block[1], block[2]


def _parsed(words, monkeypatch):
    """The flags of a command line of launch.py, as launch.py has them."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    for name in ("workdir", "sweep", "distributed"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    monkeypatch.setattr(sys, "argv", ["launch.py", *words])
    rest = values(sys.argv)
    assert rest[1:] == [] and values.config.stages, words
    return values


def _launch(words, monkeypatch, quick):
    """Runs a command line of launch.py at size smoke, in its own work directory."""
    if importlib.util.find_spec("umap") is None and "--config.explore.umap=True" in words:
        print("without umap, which is not installed")
        words = [word for word in words if word != "--config.explore.umap=True"]
    own = _parsed(words, monkeypatch)
    done = pathlib.Path("done") / hashlib.sha256(repr((words, quick)).encode()).hexdigest()
    if done.exists():  # on another page
        return
    done.parent.mkdir(exist_ok=True)
    done.touch()
    assert set(plugins.listed(own.config.stages)) <= stages.STAGES.keys()
    named = command.named(own["config"])
    folder = pathlib.Path(own.workdir or named.folder(bool(own.sweep)))
    smaller = [re.sub(r"(experiments/\w+\.py)(:\w+)?", r"\1:smoke", word) for word in words]
    if any("generate.weights=demo" in word for word in words):  # which have a size
        smaller = [*words, "--config.generate.count=8"]
    for much, little in SMALLER.items():
        smaller = [word.replace(much, little) for word in smaller]
    values = _parsed(smaller, monkeypatch)
    config, which = values.config, values.sweep
    config.workers = 1
    own = "table" in config or judges.controls(config)  # boxes cannot be cut anew
    if own:
        config.data.skulls, config.data.kinds = 4, ("random_1",)
    elif config.data.source == "phantom":
        config.data.source = "tests.toy_source"
    elif quick and config.data.source == "skulls" and not config.data.kinds:
        config.data.kinds = ("random_1",)
    if quick and not any("--config.stages" in word for word in words):
        config.stages = tuple(name for name in config.stages if name not in LONG | {"generate"})
    elif quick and LONG.intersection(plugins.listed(config.stages)):
        return  # its fields are checked; the slow test runs it
    sweeping = which or config.get("table")
    if not sweeping and not own and not any("config.data." in word for word in words):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "real.zarr").exists():  # of phantoms, all runs have the same
            (folder / "real.zarr").symlink_to(pathlib.Path("runs/vae_wgan/real.zarr").resolve())
    if sweeping:
        sweep.sweep(config, folder, "list" if quick else which or "all", named)
        return
    released = config.generate.weights == "demo"  # by keys of the kind threefry
    with jax.default_prng_impl("threefry2x32" if released else jax.config.jax_default_prng_impl):
        workdir.run(config, folder)


def _bash(text, home, monkeypatch, quick):
    noted, path = home / "noted", f"{home / 'stubs'}:{os.environ['PATH']}"
    noted.write_text("", encoding="utf-8")
    how = dict(cwd=home, env={**os.environ, "PATH": path, "NOTED": str(noted)}, encoding="utf-8")
    done = subprocess.run(["bash", "-euc", text], capture_output=True, **how)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    calls = [shlex.split(line) for line in noted.read_text(encoding="utf-8").splitlines()]
    assert calls, f"runs nothing: {text}"
    for program, *words in calls:
        if program == "pip":
            _installs(words)
        elif program == "python" and words[0] == "launch.py":
            _launch(words[1:], monkeypatch, quick)
        else:
            assert program in ("srun", "sbatch") or words[:2] in (["-m", "pytest"], ["-m", "venv"])


def _installs(words):
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for word in words:
        named = re.search(r"\[(.*)\]", word)
        assert word in ("install", "-e", ".") or named, word
        assert not named or set(named[1].split(",")) <= extras.keys(), word


def _run(page, home, monkeypatch, quick):
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    names = {"__name__": "page"}
    for line, language, text in _blocks(page):
        print(f"{page.name}, line {line}")
        if language == "bash":
            _bash(text, home, monkeypatch, quick)
        elif language == "python":
            needs = re.findall(r"^(?:import|from) (torch|monai|grain)\b", text, re.M)
            if all(map(importlib.util.find_spec, needs)):
                exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)
        else:
            assert language in ("text", "bibtex"), f"{page.name}, line {line}: says no language"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_runs(page, home, monkeypatch):
    _run(page, home, monkeypatch, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_runs_with_all_its_stages(page, home, monkeypatch):
    _run(page, home, monkeypatch, quick=False)


def test_figures_and_links_exist():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _text(page)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_methods_name_functions_that_are_there():
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    file, line = hooks["place"]("networks.losses.gradient_penalty")
    assert _text(ROOT / file).splitlines()[line - 1].startswith("def gradient_penalty(")
    with pytest.raises(KeyError):
        hooks["place"]("networks.losses.no_such_thing")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods.md"))
    linked = hooks["on_page_markdown"](_text(ROOT / "docs" / "methods.md"), page)
    rows = [row for row in linked.splitlines() if re.match(r"\| \d", row)]
    assert len(rows) > 15 and all("](api.md#skullgen." in row for row in rows)


def test_the_api_page_and_the_table_of_rooms_have_every_module():
    files = [file.relative_to(ROOT / "skullgen") for file in (ROOT / "skullgen").rglob("*.py")]
    names = {".".join(file.with_suffix("").parts) for file in files if file.stem != "__init__"}
    api = re.findall(r"^::: skullgen\.(\S+)$", _text(ROOT / "docs" / "api.md"), re.M)
    assert sorted(api) == sorted(names)
    rows = re.findall(r"^\| (`.*?) \|", _text(ROOT / "CONTRIBUTING.md"), re.M)
    rooms = re.findall(r"`(\w+)/?`", " ".join(rows))
    assert sorted(rooms) == sorted({name.partition(".")[0] for name in names})


def test_the_site_is_built_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.glob("*.html"))
    assert 2 < len([p for p in pages if p.name not in ("404.html", "search.html")]) <= 8
    for page in pages:
        text = _text(page)
        fetched = re.findall(r'<(?:script|link|img|iframe|source)[^>]*(?:src|href)="([^"]+)"', text)
        assert fetched and not [place for place in fetched if "//" in place], page.name
    styles = " ".join(p.read_text("utf-8", "ignore") for p in tmp_path.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", styles)
