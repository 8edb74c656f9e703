"""Configs and folders that cannot be run, each with its one line."""

import math
import sys
import types

import numpy as np

from experiments import wgan_gp
from skullgen.core import files
from skullgen.data import store
from skullgen.training import checkpoint, methods
from tests.faults.cases import Case


def _with(stages, **fields):
    """`make` that sets fields, `{"a.b": 1}` for config.a.b, as a command line would."""

    def make(folder, config):
        with config.ignore_type():
            config.update_from_flattened_dict({"stages": (stages,), **fields})

    return make


def _wgan_gp(**fields):
    def make(folder, config):
        config.stages, config.model_name = ("train",), "wgan_gp"
        config.model = wgan_gp.get_config("smoke").model
        config.model.update(fields)

    return make


def _module(name, **contents):
    """A user's own module, as a run would import it."""
    sys.modules[name] = types.SimpleNamespace(**contents)
    return _with("train", model_name=name)


def _store(path, size=16, split=0):
    attributes = {"voxel_mm": 12.8, "kinds": ["a"], "names": ["b"], "licence": "none"}
    opened = store.create(path, store.Shape(4, size, 4), attributes, {})
    bits = np.full((4, size**3 // 4), 0x55, np.uint8)
    opened.write(0, bits, {"split": np.full(4, split), "skull": np.zeros(4, int)})


def _linked(**about):
    def make(folder, config):
        _store(folder / "other.zarr", **about)
        config.data.source, config.data.root = "store", str(folder / "other.zarr")

    return make


def _linked_to_a_folder(folder, config):
    (folder / "other.zarr").mkdir()
    config.data.source, config.data.root = "store", str(folder / "other.zarr")


def _half_a_store(folder, config):
    _linked()(folder, config)
    (folder / "other.zarr" / "voxels" / "c" / "0" / "0").unlink()


def _net_of_another_size(folder, config):
    _store(folder / "run" / "real.zarr", size=16)
    _store(folder / "other.zarr", size=8)
    config.stages = ("segment",)
    config.segment.stores = f"real.zarr:train:all,{folder / 'other.zarr'}:all:2"


def _too_many_pairs(folder, config):
    _store(folder / "run" / "real.zarr")
    config.stages, config.segment.stores = ("segment",), "real.zarr:train:9"


def _a_checkpoint(folder, config):
    """A checkpoint of update 2 in the run's own place, as far as a folder of that name is one."""
    place = folder / "run" / "checkpoints" / "vae"
    (place / "2").mkdir(parents=True)
    files.write_json(place / "recipe.json", methods.recipe("vae", config.model))
    _store(folder / "run" / "real.zarr")
    config.stages = ("generate",)
    assert checkpoint.newest(place) == 2


def _a_cut_recipe(folder, config):
    _a_checkpoint(folder, config)
    (folder / "run" / "checkpoints" / "vae" / "recipe.json").write_text("{")


def _a_cut_config(folder, config):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{")


def _a_file_is_the_workdir(folder, config):
    (folder / "run").write_text("mine")


def _a_file_above_the_data(folder, config):
    (folder / "skulls").write_text("mine")
    config.data.source, config.data.root = "skulls", str(folder / "skulls" / "more")


STAGES = (
    "name some of ingest, train, generate, segment, evaluate, explore, gallery, report, release, "
    "predict, export, comma-separated"
)
PHASE = r"phases\[0\] needs a positive `epochs` or a positive `updates`, not both.*"
FIELDS = r"phases\[0\] is .*: its fields are step, epochs, .*"
MADE, SEGMENT, NETS = "ingest,train,generate", "ingest,segment", "segment.stores"
NO_STORE = r".*/runs/a\.zarr: no store of pairs here; .*"
# Stages, a field, its value, the line.
SET = (
    ("ingest,trian", "seed", 0, rf"stages is 'ingest, trian': {STAGES}"),
    ("", "seed", 0, rf"stages is '': {STAGES}"),
    (" , ", "seed", 0, rf"stages is '': {STAGES}"),
    ("train", "phases", [], r"phases is empty: `train` needs one, for example .*"),
    ("train", "phases", ["vae"], FIELDS),
    ("train", "phases", [dict(updates=3)], FIELDS),
    ("train", "phases", [dict(step="vae", length=3)], FIELDS),
    ("train", "phases", [dict(step="gan", updates=3)], r"phases\[0\]\.step is 'gan': choose .*"),
    ("train", "phases", [dict(step="vae", epochs=1, updates=2)], PHASE),
    ("train", "phases", [dict(step="vae")], PHASE),
    ("train", "phases", [dict(step="vae", updates=-3)], PHASE),
    ("train", "phases", [dict(step="vae", updates=2.5)], PHASE),
    ("train", "phases", [dict(step="vae", epochs="ten")], PHASE),
    ("train", "phases", [dict(step="vae", epochs=math.nan)], PHASE),
    ("train", "phases", [dict(step="vae", updates=3, batches=0)], PHASE),
    ("train", "batch_size", "four", r"config\.batch_size is 'four': .*"),
    ("train", "batch_size", None, r"config\.batch_size is None: it must .*"),
    ("train", "log_every", True, r"config\.log_every is True: it must be 1 .*"),
    ("ingest", "workers", math.nan, r"config\.workers is nan: it must be 0 .*"),
    ("ingest", "workers", -1, r"config\.workers is -1: it must be 0 to 1024"),
    ("ingest", "model.resolution", 0, r"config\.model\.resolution is 0: .*"),
    ("ingest", "model.resolution", 10**6, r"config\.model\.resolution is 1000000: .*"),
    (MADE, "generate.threshold", 0.0, r"config\.generate\.threshold is 0\.0: .*"),
    (MADE, "generate.threshold", math.nan, r"config\.generate\.threshold is nan: .*"),
    (MADE, "generate.count", 0, r"config\.generate\.count is 0: .*"),
    ("explore", "explore.perplexity", 0.0, r"config\.explore\.perplexity is 0\.0: it must .*"),
    # Models.
    ("train", "model.head", "a", r"model\.head is 'a': choose one of independent, .*"),
    ("train", "model.precision", "float8", r"model\.precision is 'float8': .*"),
    ("train", "model.pool", "max", r"model\.pool is 'max': choose one of .*"),
    ("train", "model.latents", "a", r"model\.latents is 'a': .* prior, aggregate"),
    ("train", "model.widths", (), r"config\.model does not fit .*"),
    ("ingest,train", "model.resolution", 18, r".*: resolution 18 .* 2 times: .*multiple of 4"),
    ("ingest,train", "model.groups", 3, r"config\.model does not fit skullgen\.models\.vae: .*"),
    ("train", "model_name", "vea", r"model_name is 'vea': no module .*"),
    ("train", "model_name", "", r"model_name is '': no module is named"),
    ("train", "model_name", "./vae.py", r"model_name is '\./vae\.py': no .*"),
    (SEGMENT, "segment.model_name", "vae", r"config\.segment\.model lacks .*, which vae reads"),
    # Sources and stores.
    ("ingest", "data.source", "dicom", r"data\.source is 'dicom': choose one of .*"),
    ("ingest", "data.source", "skulls", r"data\.root is empty: give a folder .*"),
    ("ingest", "data.test", "phantom_9", r".* names 'phantom_9': no such skull"),
    ("ingest", "data.test_fraction", 1.0, r"data\.source=phantom: 8 skulls, none of them to .*"),
    (SEGMENT, NETS, "real.zarr:train:all,runs/a.zarr:all:5", NO_STORE),
    (SEGMENT, NETS, "real.zarr:train:none", r"segment\.stores: '.*' names no pairs: write .*"),
    ("ingest,explore", "explore.stores", "runs/a.zarr", NO_STORE),
    ("train", "seed", 0, r".*/real\.zarr: no store of pairs here; .*"),
    ("generate", "seed", 0, r".*: no checkpoint; run the stage `train` .*"),
)
TOY = _with(MADE, **{"model_name": "tests.toy_net", "model.learning_rate": 0.1})
FOLD = _with("ingest", **{"data.folds": 3, "data.fold": 3})
NOTHING = _module("bad.empty", make=lambda config: None)
DEPTH = _module("bad.field", make=lambda config: config.depth)
ROWS = (
    ("norm", _wgan_gp(generator_norm="a"), r"model\.generator_norm is 'a': choose one of .*"),
    ("critic", _wgan_gp(critic_norm="batch"), r"model\.critic_norm is 'batch': choose one of .*"),
    ("no posterior", _wgan_gp(latents="aggregate"), r"model\.latents is 'aggregate': .* of prior"),
    ("no make", _module("bad.none"), r"model_name is 'bad\.none': bad\.none has no function .*"),
    ("no model is made", NOTHING, r"bad\.empty: make returned NoneType, not a types\.Model"),
    ("a user's field", DEPTH, r"config\.model lacks the field depth, which bad\.field reads"),
    ("a net generates", TOY, r"model_name is 'tests\.toy_net': it has no latents and decode"),
    ("no such fold", FOLD, r"data\.fold is 3: the folds are 0 to 2"),
    ("a root in a file", _a_file_above_the_data, r".*/skulls/more: no such folder; .*"),
    ("a store of another size", _linked(size=8), r".*/other\.zarr: .*model\.resolution 16"),
    ("a store that cannot train", _linked(split=2), r".*/other\.zarr: it has no pair of .*"),
    ("no store", _linked_to_a_folder, r".*/other\.zarr: no store of pairs here; .*"),
    ("half a store", _half_a_store, r".*/other\.zarr: 4 pairs are not made yet: .*"),
    ("stores of two sizes", _net_of_another_size, r".*/other\.zarr: .* not of the size .*"),
    ("a net of too many pairs", _too_many_pairs, r".*/real\.zarr: .*"),
    ("a file is the workdir", _a_file_is_the_workdir, r".*/run: .*"),
    ("a cut config.json", _a_cut_config, r".*/run/config\.json: cannot be read .*"),
    ("a cut recipe", _a_cut_recipe, r".*/vae/recipe\.json: cannot be read .*"),
    ("half a checkpoint", _a_checkpoint, r".*/checkpoints/vae/2: damaged .*: delete it: .*"),
)
CASES = [
    *(Case(f"{x}: {y} {z}", _with(x, **{y: z}), line) for x, y, z, line in SET),
    *(Case(*row) for row in ROWS),
]
