"""Configs and folders that cannot be run, each with its one line."""

import contextlib
import math
import sys
import types

import jax
import numpy as np
from ml_collections import ConfigDict

from skullgen.core import provenance
from skullgen.data import store
from skullgen.training import checkpoint, methods
from tests import toy
from tests.faults.cases import Case


def _with(stages="ingest", **fields):
    """`make` that sets fields, `a__b` for a.b, as a command line would."""

    def make(folder, config):
        config.stages = tuple(stages.split(","))
        config.update_from_flattened_dict({n.replace("__", "."): v for n, v in fields.items()})

    return make


def _without(*names, stages="ingest"):
    def make(folder, config):
        config.stages = tuple(stages.split(","))
        for name in names:
            *sections, last = name.split("__")
            held = config
            for section in sections:
                held = held[section]
            del held[last]

    return make


def _phases(*phases):
    return _with("train", phases=list(phases))


def _module(name, **contents):
    """A user's own module, as a run would import it."""
    sys.modules[name] = types.SimpleNamespace(**contents)
    return _with("train", model_name=name)


def _store(path, size=16, split=0, **attributes):
    about = {"voxel_mm": 12.8, "kinds": ["a"], "names": ["b"], "licence": "none"}
    opened = store.create(path, store.Shape(4, size, 4), {**about, **attributes}, {})
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


def _checkpoint(state, name, folder, config):
    """A checkpoint of update 2 in the run's own place, said to be of the run's own model."""
    place = folder / "run" / "checkpoints" / name
    with contextlib.closing(checkpoint.manager(place)) as manager:
        checkpoint.save(manager, state.replace(step=np.int32(2)))
        manager.wait_until_finished()
    _store(folder / "run" / "real.zarr")
    config.stages = ("generate",)
    provenance.write(place, {**methods.recipe(config.model_name, config.model), "stores": {}})


def _toy_state():
    settings = ConfigDict({"learning_rate": 0.1, "breaks_at": -1, "resolution": 16})
    return toy.make(settings).init(jax.random.key(0))


def _checkpoint_of_another_model(folder, config):
    _checkpoint(_toy_state(), "vae", folder, config)
    place = folder / "run" / "checkpoints" / "vae"
    provenance.write(place, {**provenance.read(place), "model_name": "wgan_gp"})


def _other_widths_than_the_checkpoint(folder, config):
    _checkpoint(_toy_state(), "vae", folder, config)
    config.model.widths = (8, 32)


def _nothing_to_evaluate(folder, config):
    _store(folder / "run" / "real.zarr")
    config.stages = ("evaluate",)


def _a_file_is_the_workdir(folder, config):
    (folder / "run").write_text("mine")


def _a_file_above_the_data(folder, config):
    (folder / "skulls").write_text("mine")
    config.data.source, config.data.root = "skulls", str(folder / "skulls" / "more")


STAGES = (
    "name some of ingest, train, generate, segment, evaluate, explore, gallery, report, release, "
    "predict, export, comma-separated"
)
CASES = [
    # Stages.
    Case("unknown stage", _with("ingest,trian"), rf"stages is 'ingest, trian': {STAGES}"),
    Case("no stage", _with(""), rf"stages is '': {STAGES}"),
    Case("only commas", _with(" , "), rf"stages is '': {STAGES}"),
    # Phases.
    Case("no phases", _phases(), r"phases is empty: `train` needs one, for example .*"),
    Case("a phase is text", _phases("vae"), r"phases\[0\] is vae: its fields are step, epochs, .*"),
    Case(
        "a phase's unknown field",
        _phases(dict(step="vae", updates=1), dict(step="vae", length=3)),
        r"phases\[1\] is {'step': 'vae', 'length': 3}: its fields are step, epochs, .*",
    ),
    Case("a phase without step", _phases(dict(updates=3)), r"phases\[0\] is .*: its fields are .*"),
    Case(
        "a phase's unknown step",
        _phases(dict(step="gan", updates=3)),
        r"phases\[0\]\.step is 'gan': choose one of vae",
    ),
    Case(
        "a phase's step is a list",
        _phases(dict(step=["vae"], updates=3)),
        r"phases\[0\]\.step is .*: choose one of vae",
    ),
    *(
        Case(
            f"a phase's {what}",
            _phases(dict(step="vae", **fields)),
            r"phases\[0\] needs a positive `epochs` or a positive `updates`, not both.*",
        )
        for what, fields in {
            "epochs and updates": dict(epochs=1, updates=2),
            "lengths are missing": {},
            "length is negative": dict(updates=-3),
            "length is no whole number": dict(updates=2.5),
            "length is text": dict(epochs="ten"),
            "length is NaN": dict(epochs=math.nan),
            "batches are 0": dict(updates=3, batches=0),
        }.items()
    ),
    # Bounds of fields.
    Case(
        "threshold 0",
        _with("generate", generate__threshold=0.0),
        r"config\.generate\.threshold is 0\.0: .*",
    ),
    Case(
        "threshold NaN",
        _with("generate", generate__threshold=math.nan),
        r"config\.generate\.thres.* is nan: .*",
    ),
    Case(
        "no pairs to make",
        _with("generate", generate__count=0),
        r"config\.generate\.count is 0: it must be 1 or more",
    ),
    Case("batch 0", _with("train", batch_size=0), r"config\.batch_size is 0: it must be 1 or more"),
    Case("workers below 0", _with(workers=-1), r"config\.workers is -1: it must be 0 to 1024"),
    Case("resolution 0", _with(model__resolution=0), r"config\.model\.resolution is 0: .*"),
    Case("resolution -16", _with(model__resolution=-16), r"config\.model\.resolution is -16: .*"),
    Case(
        "resolution 10^6", _with(model__resolution=10**6), r"config\.model\.resolution is 10+: .*"
    ),
    Case(
        "connectivity 7",
        _with("generate", generate__connectivity=7),
        r"generate\.connectivity is 7: choose .*",
    ),
    Case(
        "perplexity 0",
        _with("ingest,explore", explore__perplexity=0.0),
        r"config\.explore\.perplexity is 0\.0: .*",
    ),
    Case(
        "upsampling",
        _with("ingest,evaluate", evaluate__upsampling="cubic"),
        r"evaluate\.upsampling is 'cubic': choose one of probability, mask, nearest",
    ),
    # Models.
    Case("no such model", _with("train", model_name="vea"), r"model_name is 'vea': no module .*"),
    Case("no model", _with("train", model_name=""), r"model_name is '': no module .*"),
    Case(
        "a file's name", _with("train", model_name="./vae.py"), r"model_name is '\./vae\.py': no .*"
    ),
    Case(
        "no make",
        _module("bad.none"),
        r"model_name is 'bad\.none': bad\.none has no function make.*",
    ),
    Case(
        "make returns nothing",
        _module("bad.empty", make=lambda config: None),
        r"bad\.empty: make returned NoneType, not a types\.Model",
    ),
    Case(
        "a field of the model is missing",
        _without("model__pool", stages="train"),
        r"config\.model lacks the field pool, which vae reads",
    ),
    Case(
        "a user's model lacks a field",
        _module("bad.field", make=lambda config: config.depth),
        r"config\.model lacks the field depth, which bad\.field reads",
    ),
    Case(
        "a net as the generator",
        _with("train,generate", model_name="tests.toy_net", model__learning_rate=0.1),
        r"model_name is 'tests\.toy_net': it has no latents and decode",
    ),
    Case(
        "a generator as the net",
        _with("ingest,segment", segment__model_name="vae"),
        r"config\.segment\.model lacks the field .*, which vae reads",
    ),
    Case(
        "a resolution that cannot be halved",
        _with("ingest,train", model__resolution=18),
        r"config\.model does not fit .*: resolution 18 cannot be halved 2 times: .*multiple of 4",
    ),
    Case(
        "groups that do not divide",
        _with("ingest,train", model__groups=3),
        r"config\.model does not fit skullgen\.models\.vae: .*",
    ),
    Case(
        "a net's groups that do not divide",
        _with("ingest,train,segment", segment__model__groups=3),
        r"segment\.model\.groups is 3: give a divisor of all widths \(4, 8\)",
    ),
    Case(
        "batch of three, two devices",
        _with("ingest,train", batch_size=3),
        r"batch_size is 3: not a multiple of the 2 devices",
    ),
    Case(
        "a net's batch of three, two devices",
        _with("ingest,train,segment", segment__batch_size=3),
        r"segment\.batch_size is 3: not a multiple of the 2 devices",
    ),
    # Sources and stores.
    Case(
        "no such source", _with(data__source="dicom"), r"data\.source is 'dicom': choose one of .*"
    ),
    Case(
        "no such split",
        _with(data__splits=("train", "tset")),
        r"data\.splits is 'tset': choose one .*",
    ),
    Case(
        "no such fold", _with(data__folds=3, data__fold=3), r"data\.fold is 3: the folds are 0 to 2"
    ),
    Case("no such skull", _with(data__test="phantom_9"), r".* names 'phantom_9': no such skull"),
    Case(
        "nothing to train on", _with(data__test_fraction=1.0), r"8 skulls, and none is left to .*"
    ),
    Case(
        "a CT and a segmentation",
        _with(data__bone_hu=300.0, data__label=2),
        r"data\.bone_hu is for a CT, data\.label for a segmentation: set one",
    ),
    Case("no root", _with(data__source="skulls"), r"data\.root is empty: give a folder .*"),
    Case("a root in a file", _a_file_above_the_data, r".*/skulls/more: no such folder; .*"),
    Case(
        "a store of another size",
        _linked(size=8),
        r".*/other\.zarr: .*config\.model\.resolution 16",
    ),
    Case(
        "a store without training pairs", _linked(split=2), r".*/other\.zarr: it has no pair of .*"
    ),
    Case("no store", _linked_to_a_folder, r".*/other\.zarr: no store of pairs here; .*"),
    Case("half a store", _half_a_store, r".*/other\.zarr: 4 pairs are not made yet: .*"),
    Case(
        "fresh defects of a store",
        lambda folder, config: (_linked()(folder, config), _with(segment__fresh=5)(folder, config)),
        r"segment\.fresh needs complete skulls to cut, which data\.source=store has not: .*",
    ),
    Case(
        "a net's stores are not there",
        _with("ingest,train,segment", segment__stores="real.zarr:train:all,runs/a.zarr:all:5"),
        r".*/runs/a\.zarr: no store of pairs here; .*",
    ),
    Case(
        "a net's stores without pairs",
        _with("ingest,segment", segment__stores="real.zarr:train:none"),
        r"segment\.stores: 'real\.zarr:train:none' names no pairs: write PATH:SPLIT:PAIRS, .*",
    ),
    Case(
        "a net's stores of two sizes",
        _net_of_another_size,
        r".*/other\.zarr: .* not of the size .*",
    ),
    Case("a net of too many pairs", _too_many_pairs, r".*/real\.zarr: .*"),
    Case(
        "maps of stores that are not there",
        _with("ingest,explore", explore__stores="runs/a.zarr"),
        r".*/runs/a\.zarr: no store of pairs here; .*",
    ),
    # Work directories.
    Case("a file is the workdir", _a_file_is_the_workdir, r".*/run: .*"),
    Case("training without pairs", _with("train"), r".*/real\.zarr: no store of pairs here; .*"),
    Case(
        "pairs without training", _with("generate"), r".*: no checkpoint; run the stage `train` .*"
    ),
    Case("nothing to evaluate", _nothing_to_evaluate, r".*/run: nothing to evaluate; .*"),
    Case("a checkpoint of another model", _checkpoint_of_another_model, r".*/checkpoints/vae.*"),
    Case(
        "other widths than the checkpoint's",
        _other_widths_than_the_checkpoint,
        r".*/checkpoints/vae: made with model\.widths \[8, 16\], now \[8, 32\]: set it back, .*",
    ),
]
