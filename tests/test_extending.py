"""docs/extending.md as it is read: its files are written, its commands run; and what is refused."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest

from skullgen.core import files
from skullgen.core.errors import UserError
from skullgen.data import defects, ingest, store
from skullgen.evaluation import metrics
from skullgen.training import logs, methods, parallel
from tests.faults import faults

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.S)
COMMANDS = [shlex.split(line) for line in re.findall(r"```bash\n(.*?)\n```", TEXT, re.S)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A user's folder with `mylab/`, and every command run in it: what each printed."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("launch.py", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "mypairs").mkdir()
    for number in range(8):
        pair = np.random.default_rng(number).random((16, 16, 16, 2)) < 0.1
        np.save(folder / "mypairs" / f"p{number}.npy", pair)
    np.save(folder / "mypairs" / "wrong.npy", pair.astype(float))
    return folder, [_run(folder, *command[1:]) for command in COMMANDS]


def _run(folder, *arguments):
    flags = "--xla_backend_optimization_level=0"
    environment = {**os.environ, "PYTHONPATH": str(folder), "XLA_FLAGS": flags}
    fewer = ["data.skulls=4", "evaluate.rules=False", "evaluate.cases=1", "compilation_cache="]
    fewer += ["segment.controls=()"]
    if "data.kinds" not in str(arguments):  # there, worker processes import mylab, too
        fewer += ["workers=1", "data.kinds=bilateral,random_1"]
    command = [sys.executable, *arguments, *(f"--config.{field}" for field in fewer)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_text_has_the_files_and_commands_that_are_tried():
    names = "autoencoder experiment defects sources metrics".split()
    assert [name for name, _ in FILES] == [f"mylab/{name}.py" for name in names]
    assert all(command[:2] == ["python", "launch.py"] for command in COMMANDS)
    assert len(COMMANDS) == 6


def test_a_model_of_ones_own_learns_samples_and_is_judged(lab):
    folder, said = lab
    work = folder / "runs" / "autoencoder"
    records = logs.read(work / "train.jsonl")
    assert len(records) == 150
    assert records[-1]["error"] < 0.5 * records[0]["error"]
    pairs = store.Store(work / "generated.zarr").load(list(range(20)))
    assert len({row.tobytes() for row in pairs}) > 10  # not one pair twenty times
    assert (work / "report.html").exists() and "warning: nothing in" not in said[0]
    quality = files.read_json(work / "metrics.json")["quality"]
    assert quality["skull"]["nearest_training_dice"]["generated"] > 0.6
    assert quality["defect"]["nearest_training_dice"]["generated"] > 0.3


def test_its_sweep_is_listed(lab):
    names = [line.split()[2] for line in lab[1][1].splitlines() if line[:4].strip().isdigit()]
    assert names == [f"model.latent={n}-seed={seed}" for n in (4, 8) for seed in (0, 1)]


def test_a_run_is_made_again_from_its_own_folder_bit_for_bit(lab):
    folder, _ = lab
    first, again = folder / "runs" / "autoencoder", folder / "runs" / "again"
    for name in ("real.zarr", "generated.zarr"):
        ours, theirs = faults.content(first / name), faults.content(again / name)
        for file in ours.keys() - {pathlib.Path("README.md")}:  # which tells the verdict
            assert ours[file] == theirs[file], file
    assert (again / "train.jsonl").read_bytes() == (first / "train.jsonl").read_bytes()


def test_a_kind_of_ones_own_is_in_the_store(lab):
    opened = store.Store(lab[0] / "runs" / "kinds" / "real.zarr")
    assert opened.attrs["kinds"] == ["bilateral", "mylab.defects.round_hole"]
    assert (np.bincount(opened.column("kind")) == 4).all() and opened.column("voxels").min() > 0
    pairs = store.unpack(opened.load(list(range(opened.count))), opened.size)
    assert not pairs.all(axis=-1).any()  # a defect is taken out of its skull
    whole = pairs.any(axis=-1)
    assert np.array_equal(whole[0], whole[1])  # one skull, cut twice
    assert list(opened.recipe["sources"]) == ["mylab.defects.py"]


def test_pairs_that_were_cut_by_other_code_are_not_gone_on_with(lab):
    path = lab[0] / "mylab" / "defects.py"
    before = path.read_bytes()
    path.write_bytes(before + b"\n# changed\n")
    with pytest.raises(
        AssertionError, match=r"made with sources\.mylab\.defects\.py '[0-9a-f]{57}"
    ):
        _run(lab[0], *COMMANDS[3][1:])
    path.write_bytes(before)


def test_a_source_of_ones_own_makes_the_store(lab):
    folder, said = lab
    opened = store.Store(folder / "runs" / "source" / "real.zarr")
    assert opened.attrs["kinds"] == ["hole"] and len(opened.attrs["names"]) == 9
    rows = opened.rows()
    names, pairs = (
        opened.names(opened.column("skull")[rows]),
        store.unpack(opened.load(rows), opened.size),
    )
    for name, pair in zip(names, pairs, strict=True):
        assert np.array_equal(pair, np.load(folder / "mypairs" / f"{name}.npy"))
    assert "wrong.npy: not a pair" in said[4] and len(rows) == 8
    assert "mylab.sources.py" in opened.recipe["sources"]


def test_a_metric_of_ones_own_is_in_the_verdict_and_in_the_report(lab):
    work = lab[0] / "runs" / "autoencoder"
    name = "mylab.metrics.volume_error_ml"
    verdict = files.read_json(work / "metrics.json")["verdict"]
    cases = [case for case in verdict["cases"] if case["net"] == "vnet"]
    assert cases and all(case[name] < 1e4 for case in cases)
    rows = [row for row in verdict["summary"] if row["metric"] == name and row["by"] == "all"]
    assert {row["net"] for row in rows} == {case["net"] for case in verdict["cases"]}
    assert f"{name}, vnet, test: " in lab[1][5]


def test_noise_in_a_step_is_drawn_as_shown(tmp_path, monkeypatch):
    [line] = re.findall(r"```python\n(noise = .*)\n```", TEXT)
    model, after = dict(FILES)["mylab/autoencoder.py"], "batch.labels\n        net, pairs"
    noisy = re.sub(rf"({after}.*\n)", rf"\1        {line}\n", model)
    noisy = noisy.replace("z = code(params, pairs)", "z = code(params, pairs) + noise")
    noisy = noisy.replace('{"error": error}', '{"error": error, "spread": noise.std(0).min()}')
    (tmp_path / "noiselab").mkdir()
    (tmp_path / "noiselab" / "noisy.py").write_text(noisy, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    fields = dict(resolution=16, widths=(8, 16), groups=4, latent=8, learning_rate=1e-3)
    config = ml_collections.ConfigDict({**fields, "channel_weights": (1.0, 4.0)})
    methods.check("noiselab.noisy", config, [dict(step="reconstruct", updates=1)])
    method = methods.load_model("noiselab.noisy", config)
    update = parallel.data_parallel(method.steps["reconstruct"], 16, jax.local_devices()[:1])
    bits = np.zeros((4, 16**3 // 4), np.uint8)
    data = bits, np.zeros((4, 10), np.float32)
    _, measured = update(method.init(jax.random.key(0)), data, np.arange(4)[None])
    assert measured["spread"] > 0.01  # each sample has its own


OWN = dict(
    shape=lambda complete, *rest: np.zeros((2, 2, 2), bool),
    integers=lambda complete, *rest: complete.astype(int),
    nothing=lambda complete, *rest: np.zeros_like(complete),
    all_of_it=lambda complete, *rest: np.ones_like(complete),
    half=lambda complete, *rest: np.indices(complete.shape)[0] < 4,
    nan=lambda prediction, truth, skull, voxel_mm: float("nan"),
    none=lambda prediction, truth, skull, voxel_mm: None,
    plan=lambda size, config: [],
)


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(sys.modules, "ownlab.code", SimpleNamespace(**OWN))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shape", r"returned bool \[2, 2, 2\]: it must return bool \[8, 8, 8\]"),
        ("integers", r"returned int64 \[8, 8, 8\]"),
        ("nothing", "took none of the bone out"),
        ("all_of_it", "took all of the bone out"),
    ],
)
def test_kinds_that_return_anything_else_are_refused(own, name, words):
    complete = np.zeros((8, 8, 8), bool)
    complete[2:6, 2:6, 2:6] = True
    options = dict(voxel_mm=np.ones(3), area_cm2=(10.0, 150.0))
    with pytest.raises(UserError, match=rf"ownlab\.code\.{name} {words}"):
        defects.cut(complete, f"ownlab.code.{name}", 0, **options)
    defective, implant = defects.cut(complete, "ownlab.code.half", 0, **options)
    assert implant.sum() == 32 and np.array_equal(defective | implant, complete)
    assert not (defective & implant).any()


def test_wrong_names_are_one_line(own, tmp_path):
    def data(**fields):
        return ml_collections.ConfigDict(fields)

    assert defects.kinds_of(data(kinds=())) == defects.kinds_of(data()) == defects.KINDS
    for text, words in (
        ("bilateral,foo", "data.kinds is 'foo': choose one of bilateral"),
        ("ownlab.code.foo", r"ownlab\.code has no function foo\(complete, seed"),
        ("nolab.foo", r"no module nolab that can be imported"),
        ("bilateral,bilateral", "each of them once"),
    ):
        with pytest.raises(UserError, match=words):
            defects.kinds_of(data(kinds=text))
    with pytest.raises(UserError, match=r"ownlab\.none.*no module ownlab\.none"):
        ingest.planner("ownlab.none")
    with pytest.raises(UserError, match=r"ownlab\.code\.plan returned list"):
        ingest.run(tmp_path, 8, data(source="ownlab.code"), ingest.Options())
    with pytest.raises(UserError, match=r"ownlab\.code has no function foo\(prediction"):
        metrics.own(data(metrics="ownlab.code.foo"))


def test_a_metric_that_is_not_finite_names_itself_and_the_pair(own):
    pair = np.zeros((8, 8, 8, 2), bool)
    pair[2:4, 2:4, 2:4, 1] = pair[4:, 2:4, 2:4, 0] = True
    record = store.Pair(store.pack(pair), np.eye(4))
    label = {"store": "s.zarr", "pair": 0}
    case = (label, record, pair[..., 1].astype(np.float32), 25.6, 0.5)
    assert metrics.case(*case, ("ownlab.code.none",))["ownlab.code.none"] is None
    with pytest.raises(UserError, match=r"ownlab\.code\.nan of .*s\.zarr, pair 0, is nan"):
        metrics.case(*case, ("ownlab.code.nan",))
