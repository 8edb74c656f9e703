"""Table 1 with controls: generators x counts x seeds, what they must beat, what none can.

  python launch.py --config experiments/table1.py
  python launch.py --config experiments/table1.py --sweep=list
  python launch.py --config experiments/table1.py --sweep=7
  python launch.py --config experiments/table1.py:paper --config.data.root=SKULLBREAK

A row is a mixture (`skullgen/run/table.py`); others by --config.table.rows="real,real + vae:100".
Fields of a generator are set by its name, as --config.generators.vae.phases[0].updates=900; grid
and data are the table's. A run is reused while its config and all that it needs stay as they were.
"""

from ml_collections import ConfigDict

from experiments import introvae, vae, vae_wgan, vnet, wgan_gp

GENERATORS = {"wgan_gp": wgan_gp, "vae": vae, "vae_wgan": vae_wgan, "introvae": introvae}


def get_config(size="demo"):
    """The table at a size: `smoke`, `demo`, `paper`."""
    config = vnet.get_config(size)
    models = tuple(GENERATORS) if size == "paper" else ("vae", "vae_wgan")
    counts = {"smoke": (8,), "demo": (100, 1000), "paper": (500, 1000, 3000, 40_000)}[size]
    config.table = ConfigDict()
    rows = (
        *("real plain", "real", "fresh", "transplants", "ceiling"),
        *(f"{model}:{count}" for model in models for count in counts),
        *(f"{control} + {model}:{counts[-1]}" for model in models for control in ("real", "best")),
    )
    config.table.rows = ", ".join(rows)
    config.table.pairs = {"smoke": 40, "demo": 1000, "paper": 40_000}[size]  # of each control
    config.table.seeds = {"smoke": 1, "demo": 3, "paper": 3}[size]
    config.table.refit = False  # a generator of its own for each seed
    config.table.folds = 0  # cross-validation over skulls: all is made anew for each fold
    config.table.metric = "dice_512"  # or dice (the model's grid), dice_native, bdsc
    config.generators = ConfigDict(
        {name: module.get_config(size) for name, module in GENERATORS.items()}
    )
    if size == "demo":  # a grid that many networks converge on in minutes
        config.segment.updates = 2000
        config.model.resolution = 16
        config.data.threshold = 0.2
    return config
