"""Every config in experiments/, all of its stages, at its smallest size."""

import importlib
import pathlib

import pytest

from skullgen import logs, run, store, train

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common"))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """One store for all: their data fields are equal."""
    work = tmp_path_factory.mktemp("phantoms")
    config = importlib.import_module(f"experiments.{NAMES[0]}").get_config("smoke")
    config.stages = "ingest"
    run.run(config, work)
    return work / "real.zarr"


@pytest.mark.parametrize("name", NAMES)
def test_smoke_size_runs_all_stages(name, phantoms, tmp_path):
    config = importlib.import_module(f"experiments.{name}").get_config("smoke")
    (tmp_path / "real.zarr").symlink_to(phantoms)
    run.run(config, tmp_path)
    records = logs.read(tmp_path / "train.jsonl")
    expected = [phase.step for phase in _phases(config) for _ in range(phase.updates)]
    assert [r["phase"] for r in records] == expected
    assert {"occupancy_skull", "occupancy_defect"} <= records[-1].keys()
    assert len(store.rows(tmp_path / "generated.zarr")) == config.generate.count
    assert (tmp_path / "metrics.json").exists()
    assert (tmp_path / "figures" / "losses.png").exists()


def _phases(config):
    return [train.Phase(**spec) for spec in config.phases]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["demo", "paper"])
def test_larger_sizes_make_their_model_and_phases(name, size):
    config = importlib.import_module(f"experiments.{name}").get_config(size)
    model = train.load_model(config.model_name, config.model)
    assert train.phases(config.phases, model)


@pytest.mark.parametrize("name", NAMES)
def test_paper_size_has_section_4_3s_numbers(name):
    config = importlib.import_module(f"experiments.{name}").get_config("paper")
    assert config.batch_size == 8
    assert (config.model.resolution, config.model.latent) == (128, 200)
    assert tuple(config.model.widths) == (64, 128, 256, 512)
    assert config.model.head == ("linear" if name == "introvae" else "independent")
    assert config.model.latents == "prior"
    assert config.generate.count == 40_000
    if "wgan" in name:
        assert (config.model.learning_rate, config.model.critic_learning_rate) == (2e-4, 2e-4)
        assert (config.model.b1, config.model.b2, config.model.penalty) == (0.5, 0.9, 100)
        assert config.phases[-1]["batches"] == 5
        assert config.model.generator_norm == "batch"
    if name.startswith("vae"):
        assert config.model.vae_learning_rate == 1e-3
    if name == "introvae":
        assert config.model.learning_rate == 1e-3
        assert (config.model.alpha, config.model.beta, config.model.margin) == (0.25, 1, 10)
        assert tuple(config.model.channel_weights) == (1, 1)
        assert [(p["step"], p["epochs"]) for p in config.phases] == [("vae", 10), ("intro", 90)]
    if name == "vae_wgan":
        lengths = [(p["step"], p["epochs"]) for p in config.phases]
        assert lengths[:2] == [("vae", 10), ("bridge", 15)]
