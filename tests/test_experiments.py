"""Every config in experiments/, all of its stages, at its smallest size."""

import importlib
import pathlib

import pytest

from experiments import common
from skullgen.core import files, plugins, provenance
from skullgen.data import sources, store
from skullgen.run import table, workdir
from skullgen.training import logs, methods

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"
FILES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common"))
NAMES = [
    name for name in FILES if name not in ("again", "table1", "vnet", "worth")
]  # the generators


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """One store for all: their data fields are equal."""
    work = tmp_path_factory.mktemp("phantoms")
    config = importlib.import_module(f"experiments.{NAMES[0]}").get_config("smoke")
    config.stages = ("ingest",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "NATIVE_SIDE", 48)
        workdir.run(config, work)
    return work / "real.zarr"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vae_wgan"])
def test_smoke_size_trains_and_generates(name, phantoms, tmp_path):
    """All stages of VAE/WGAN-GP's run and are looked at in `.ci/run`."""
    config = importlib.import_module(f"experiments.{name}").get_config("smoke")
    config.stages = ("ingest", "train", "generate")
    (tmp_path / "real.zarr").symlink_to(phantoms)
    workdir.run(config, tmp_path)
    records = logs.read(tmp_path / "train.jsonl")
    expected = [phase["step"] for phase in config.phases for _ in range(phase["updates"])]
    assert [r["phase"] for r in records] == expected
    assert name == "shape" or {"occupancy_skull", "occupancy_defect"} <= records[-1].keys()
    assert len(store.Store(tmp_path / "generated.zarr").rows()) == config.generate.count


def test_the_v_net_alone_is_scored_on_real_pairs(phantoms, tmp_path):
    config = importlib.import_module("experiments.vnet").get_config("smoke")
    (tmp_path / "real.zarr").symlink_to(phantoms)
    workdir.run(config, tmp_path)
    result = files.read_json(tmp_path / "metrics.json")
    columns = {(case["net"], case["column"]) for case in result["verdict"]["cases"]}
    # Its own training pairs are the real ones: no column of its own.
    own = {column for net, column in columns if net == "vnet"}
    assert own == {"validation", "test", "selection"}
    assert not any(net == "vnet_real" for net, _ in columns)
    assert "quality" not in result and not (tmp_path / "generated.zarr").exists()
    assert (tmp_path / "report.html").exists()


def test_every_size_has_the_same_fields():
    fields = [provenance.leaves(common.defaults(size).to_dict()).keys() for size in common.SIZES]
    assert fields[0] == fields[1] == fields[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["demo", "paper"])
def test_larger_sizes_make_their_model_and_phases(name, size):
    config = importlib.import_module(f"experiments.{name}").get_config(size)
    model = methods.load_model(config.model_name, config.model)
    assert methods.phases(config.phases, model)


PAPER = {  # sections 4.3 and 5, of the configs whose names begin so
    "": {
        **{"model.resolution": 128, "model.precision": "float32", "explore.umap": True},
        **{"segment.model.precision": "float32", "segment.model.kernel": 5},
        **{"segment.model.widths": (8, 16, 32, 64, 128), "segment.model.down": (2, 2, 3, 3, 3)},
        **{"segment.model.up": (3, 3, 2, 1), "segment.updates": 20_000, "segment.batch_size": 8},
        **{"batch_size": 8, "model.latent": 200, "model.latents": "prior"},
        **{"model.widths": (64, 128, 256, 512), "generate.count": 40_000},
    },
    "vae": {"model.vae_learning_rate": 1e-3},
    "introvae": {
        **{"model.learning_rate": 1e-3, "model.alpha": 0.25, "model.beta": 1, "model.margin": 10},
        **{"model.channel_weights": (1, 1), "model.head": "linear"},
    },
}
WGAN = {
    **{"model.learning_rate": 2e-4, "model.critic_learning_rate": 2e-4, "model.penalty": 100},
    **{"model.b1": 0.5, "model.b2": 0.9, "model.generator_norm": "batch"},
    **{"model.head": "independent"},
}
EPOCHS = dict(vae=[100], vae_wgan=[10, 15, 50], wgan_gp=[50], introvae=[10, 90], vnet=[])


@pytest.mark.parametrize("name", sorted({*NAMES, "vnet"} - {"shape"}))
def test_paper_size_has_the_papers_numbers(name):
    config = importlib.import_module(f"experiments.{name}").get_config("paper")
    values = provenance.leaves(config.to_dict())
    wanted = [fields for start, fields in PAPER.items() if name.startswith(start)]
    for fields in [*wanted, *[WGAN] * ("wgan" in name)]:
        assert {field: values[field] for field in fields} == fields
    assert [phase["epochs"] for phase in config.phases] == EPOCHS[name]
    assert "wgan" not in name or config.phases[-1]["batches"] == 5
    assert name != "vae" or config.model.head == "linear"  # IntroVAE's preliminary stage


@pytest.mark.parametrize("size", ["smoke", "demo", "paper"])
def test_table_1_has_the_papers_models_and_counts(size):
    config = importlib.import_module("experiments.table1").get_config(size)
    names = set(NAMES) - {"shape"}
    assert set(config.generators) == names
    counts = {
        name: [r for r in plugins.listed(config.table.rows) if r.startswith(f"{name}:")]
        for name in names
    }
    if size == "paper":
        wanted = ("500", "1000", "3000", "40000")
        assert counts == {name: [f"{name}:{n}" for n in wanted] for name in names}
    if size == "demo":
        assert counts["vae"] == ["vae:100", "vae:1000"] and config.table.seeds == 3
        assert (config.model.resolution, config.segment.model.kernel) == (16, 3)


@pytest.mark.parametrize("size", ["smoke", "demo", "paper"])
def test_worth_has_controls_a_ceiling_a_curve_and_generators(size, tmp_path):
    config = importlib.import_module("experiments.worth").get_config(size)
    config.explore.umap = False  # an extra
    jobs = table.plan(config, tmp_path)
    rows = {job.row[0].text for job in jobs if job.row}
    assert {"real plain", "real", "transplants", "phantoms", "ceiling", "fresh@1"} <= rows
    nets = [job.make().segment for job in jobs if job.row and "best" not in job.name]
    assert len({(net.updates, net.batch_size) for net in nets}) == 1
    assert size != "demo" or all(net.model.stem == 2 for net in nets)
    assert size == "smoke" or config.table.seeds >= 3
