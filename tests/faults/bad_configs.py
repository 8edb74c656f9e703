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


def _with(stages="ingest", **fields):
    """`make` that sets fields, `a__b` for a.b, as a command line would."""

    def make(folder, config):
        for name, value in {"stages": (stages,), **fields}.items():
            section, _, last = name.rpartition("__")
            place = config[section] if section else config
            with place.ignore_type():
                place[last] = value

    return make


def _phases(*phases):
    return _with("train", phases=list(phases))


def _wgan_gp(**fields):
    model = wgan_gp.get_config("smoke").model
    model.update(fields)
    return _with("train", model_name="wgan_gp", model=model)


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


def _other_widths_than_the_checkpoint(folder, config):
    _a_checkpoint(folder, config)
    config.model.widths = (8, 32)


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


def _fresh_of_a_store(folder, config):
    _linked()(folder, config)
    config.segment.fresh = 5


STAGES = (
    "name some of ingest, train, generate, segment, evaluate, explore, gallery, report, release, "
    "predict, export, comma-separated"
)
PHASE = r"phases\[0\] needs a positive `epochs` or a positive `updates`, not both.*"
GENERATE, NET, NETS = "ingest,train,generate", "ingest,segment", "ingest,evaluate"
ROWS = (
    # Stages and phases.
    ("unknown stage", _with("ingest,trian"), rf"stages is 'ingest, trian': {STAGES}"),
    ("no stage", _with(""), rf"stages is '': {STAGES}"),
    ("only commas", _with(" , "), rf"stages is '': {STAGES}"),
    ("no phases", _phases(), r"phases is empty: `train` needs one, for example .*"),
    ("a phase is text", _phases("vae"), r"phases\[0\] is vae: its fields are step, epochs, .*"),
    (
        "a phase's unknown field",
        _phases(dict(step="vae", updates=1), dict(step="vae", length=3)),
        r"phases\[1\] is {'step': 'vae', 'length': 3}: its fields are step, epochs, .*",
    ),
    ("a phase without step", _phases(dict(updates=3)), r"phases\[0\] is .*: its fields are .*"),
    (
        "a phase's unknown step",
        _phases(dict(step="gan", updates=3)),
        r"phases\[0\]\.step is 'gan': choose one of vae",
    ),
    ("epochs and updates", _phases(dict(step="vae", epochs=1, updates=2)), PHASE),
    ("a phase without length", _phases(dict(step="vae")), PHASE),
    ("a negative length", _phases(dict(step="vae", updates=-3)), PHASE),
    ("no whole length", _phases(dict(step="vae", updates=2.5)), PHASE),
    ("a length in words", _phases(dict(step="vae", epochs="ten")), PHASE),
    ("a length of NaN", _phases(dict(step="vae", epochs=math.nan)), PHASE),
    ("no batches", _phases(dict(step="vae", updates=3, batches=0)), PHASE),
    # Bounds.
    (
        "a batch in words",
        _with("train", batch_size="four"),
        r"config\.batch_size is 'four': .*",
    ),
    ("no batch", _with("train", batch_size=None), r"config\.batch_size is None: it must .*"),
    ("True for a number", _with("train", keep=True), r"config\.keep is True: it must be 1 .*"),
    ("NaN for a count", _with(workers=math.nan), r"config\.workers is nan: it must be 0 .*"),
    ("workers below 0", _with(workers=-1), r"config\.workers is -1: it must be 0 to 1024"),
    ("resolution 0", _with(model__resolution=0), r"config\.model\.resolution is 0: .*"),
    ("resolution 10^6", _with(model__resolution=10**6), r".*model\.resolution is 10+: .*"),
    ("threshold 0", _with(GENERATE, generate__threshold=0.0), r".*threshold is 0\.0: .*"),
    ("threshold NaN", _with(GENERATE, generate__threshold=math.nan), r".*shold is nan: .*"),
    (
        "no pairs to make",
        _with(GENERATE, generate__count=0),
        r"config\.generate\.count is 0: .*",
    ),
    (
        "perplexity 0",
        _with("explore", explore__perplexity=0.0),
        r".*plexity is 0\.0: it must .*",
    ),
    # Models.
    ("head", _with("train", model__head="a"), r"model\.head is 'a': choose one of independent, .*"),
    ("precision", _with("train", model__precision="float8"), r"model\.precision is 'float8': .*"),
    ("pool", _with("train", model__pool="max"), r"model\.pool is 'max': choose one of .*"),
    ("latents", _with("train", model__latents="a"), r"model\.latents is 'a': .* prior, aggregate"),
    ("no widths", _with("train", model__widths=()), r"config\.model does not fit .*"),
    ("norm", _wgan_gp(generator_norm="a"), r"model\.generator_norm is 'a': choose one of .*"),
    ("critic", _wgan_gp(critic_norm="batch"), r"model\.critic_norm is 'batch': choose one of .*"),
    ("no posterior", _wgan_gp(latents="aggregate"), r"model\.latents is 'aggregate': .* of prior"),
    ("no such model", _with("train", model_name="vea"), r"model_name is 'vea': no module .*"),
    ("no model", _with("train", model_name=""), r"model_name is '': no module is named"),
    (
        "a file's name",
        _with("train", model_name="./vae.py"),
        r"model_name is '\./vae\.py': no .*",
    ),
    (
        "no make",
        _module("bad.none"),
        r"model_name is 'bad\.none': bad\.none has no function .*",
    ),
    (
        "make returns nothing",
        _module("bad.empty", make=lambda config: None),
        r"bad\.empty: make returned NoneType, not a types\.Model",
    ),
    (
        "a user's model lacks a field",
        _module("bad.field", make=lambda config: config.depth),
        r"config\.model lacks the field depth, which bad\.field reads",
    ),
    (
        "a net as the generator",
        _with(GENERATE, model_name="tests.toy_net", model__learning_rate=0.1),
        r"model_name is 'tests\.toy_net': it has no latents and decode",
    ),
    (
        "a generator as the net",
        _with("ingest,segment", segment__model_name="vae"),
        r"config\.segment\.model lacks the field .*, which vae reads",
    ),
    (
        "a resolution that cannot be halved",
        _with("ingest,train", model__resolution=18),
        r"config\.model does not fit .*: resolution 18 cannot be halved 2 times: .*multiple of 4",
    ),
    (
        "groups that do not divide",
        _with("ingest,train", model__groups=3),
        r"config\.model does not fit skullgen\.models\.vae: .*",
    ),
    (
        "batch of three, two devices",
        _with("ingest,train", batch_size=3),
        r"batch_size is 3: not a multiple of the 2 devices",
    ),
    # Sources and stores.
    (
        "no such source",
        _with(data__source="dicom"),
        r"data\.source is 'dicom': choose one of .*",
    ),
    (
        "no such split",
        _with(data__splits="train,tset"),
        r"data\.splits is 'tset': choose one .*",
    ),
    (
        "no such fold",
        _with(data__folds=3, data__fold=3),
        r"data\.fold is 3: the folds are 0 to 2",
    ),
    ("no such skull", _with(data__test="phantom_9"), r".* names 'phantom_9': no such skull"),
    (
        "nothing to train on",
        _with(data__test_fraction=1.0),
        r"8 skulls, and none is left to .*",
    ),
    (
        "a CT and a segmentation",
        _with(data__bone_hu=300.0, data__label=2),
        r"data\.bone_hu is for a CT, data\.label for a segmentation: set one",
    ),
    ("no root", _with(data__source="skulls"), r"data\.root is empty: give a folder .*"),
    ("a root in a file", _a_file_above_the_data, r".*/skulls/more: no such folder; .*"),
    ("a store of another size", _linked(size=8), r".*/other\.zarr: .*model\.resolution 16"),
    ("a store that cannot train", _linked(split=2), r".*/other\.zarr: it has no pair of .*"),
    ("no store", _linked_to_a_folder, r".*/other\.zarr: no store of pairs here; .*"),
    ("half a store", _half_a_store, r".*/other\.zarr: 4 pairs are not made yet: .*"),
    ("fresh defects of a store", _fresh_of_a_store, r"segment\.fresh needs complete skulls .*"),
    (
        "a net's stores are not there",
        _with("ingest,segment", segment__stores="real.zarr:train:all,runs/a.zarr:all:5"),
        r".*/runs/a\.zarr: no store of pairs here; .*",
    ),
    (
        "a net's stores without pairs",
        _with("ingest,segment", segment__stores="real.zarr:train:none"),
        r"segment\.stores: 'real\.zarr:train:none' names no pairs: write PATH:SPLIT:PAIRS, .*",
    ),
    (
        "a net's stores of two sizes",
        _net_of_another_size,
        r".*/other\.zarr: .* not of the size .*",
    ),
    ("a net of too many pairs", _too_many_pairs, r".*/real\.zarr: .*"),
    (
        "maps of stores that are not there",
        _with("ingest,explore", explore__stores="runs/a.zarr"),
        r".*/runs/a\.zarr: no store of pairs here; .*",
    ),
    # Work directories.
    ("a file is the workdir", _a_file_is_the_workdir, r".*/run: .*"),
    ("training without pairs", _with("train"), r".*/real\.zarr: no store of pairs here; .*"),
    (
        "pairs without training",
        _with("generate"),
        r".*: no checkpoint; run the stage `train` .*",
    ),
    ("a cut config.json", _a_cut_config, r".*/run/config\.json: cannot be read .*"),
    ("a cut recipe", _a_cut_recipe, r".*/vae/recipe\.json: cannot be read .*"),
    ("half a checkpoint", _a_checkpoint, r".*/checkpoints/vae/2: damaged .*: delete it: .*"),
    (
        "other widths than the checkpoint's",
        _other_widths_than_the_checkpoint,
        r".*/vae: made with model\.widths \[8, 16\], now \[8, 32\]: set it back, or .*",
    ),
)
CASES = [Case(*row) for row in ROWS]
