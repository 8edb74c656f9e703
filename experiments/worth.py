"""What pairs are worth on your data: controls, ceiling, generators, phantoms, mixtures of them.

  python launch.py --config experiments/worth.py
  python launch.py --config experiments/worth.py --config.data.source=skulls \\
      --config.data.root=SKULLS --config.table.folds=5
  python launch.py --config experiments/worth.py --sweep=list

How much is there to gain, what gains it, and what may be given away: every row is a V-Net a seed,
trained on a mixture of pairs (`skullgen/run/table.py`). A curve over the number of skulls
(`fresh@3`); generators alone, one of them also trained on transplants and augmented; phantoms,
which no patient is in; halves of each.
"""

from ml_collections import ConfigDict

from experiments import introvae, shape, vae, vae_wgan, vnet, wgan_gp

BOTH = {"wgan_gp": wgan_gp, "vae": vae, "vae_wgan": vae_wgan, "introvae": introvae}
GENERATORS = {"shape": shape}
for name, module in BOTH.items():  # of the fixed pairs; of transplants, augmented
    GENERATORS |= {name: module, f"{name}_transplants": module}


def get_config(size="demo"):
    """The table at a size: `smoke`, `demo`, `paper`."""
    config = vnet.get_config(size)
    if size == "demo":
        config.segment.updates = 2000  # a table decides: its nets converge
    count = {"smoke": 8, "demo": 1000, "paper": 40_000}[size]
    config.table = ConfigDict()
    rows = (
        *("real plain", "real", "fresh", "transplants", "phantoms", "ceiling"),
        *("fresh@1", "fresh@3", "fresh@6"),
        *(f"{name}:{count}" for name in GENERATORS),
        *("best + phantoms", f"best + shape:{count}", f"best + vae_wgan:{count}"),
    )
    config.table.rows = ", ".join(rows)
    config.table.pairs = count
    config.table.seeds = {"smoke": 1, "demo": 3, "paper": 3}[size]
    config.table.refit = False
    config.table.folds = 0
    config.table.metric = "dice"
    config.generators = ConfigDict(
        {name: module.get_config(size) for name, module in GENERATORS.items()}
    )
    for name in BOTH:
        own = config.generators[f"{name}_transplants"]
        own.stores, own.model.augment = "transplants.zarr:all:all", True
    return config
