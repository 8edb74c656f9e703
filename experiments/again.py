"""A run from what its own folder says: it goes on there, or is made again in another folder.

  python launch.py --config runs/vae_wgan/config.json --config.stages=export
  python launch.py --config runs/vae_wgan/config.json --workdir runs/again

Made again it is the same bit for bit, on one kind of device. Fields that a later version added have
their defaults. Paths are as they were: from where you are.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from experiments import common


def get_config(path):
    """The config of a run, from its `config.json`."""
    try:
        fields = json.loads(Path(path).read_bytes())
        good = {"data", "model", "model_name", "phases"} <= fields.keys()
    except (OSError, ValueError, AttributeError):
        good = False
    if not good:
        raise ValueError(f"{path}: no such file, or not the config.json of a run")
    config = common.defaults("demo").to_dict()
    for name, value in fields.items():
        whole = name == "model" or not isinstance(value, dict)
        config[name] = value if whole else {**config.get(name, {}), **value}
    config = ConfigDict(_tuples(config))
    for part in (config.generate, config.segment, config.explore):
        if part.seed == config.seed:  # it follows --config.seed, as it did
            part.seed = config.get_oneway_ref("seed")
    return config


def _tuples(value):
    """Nested dicts with tuples, as the experiments have them, for lists of numbers and words."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    plain = isinstance(value, list) and not any(isinstance(item, dict) for item in value)
    return tuple(value) if plain else value
