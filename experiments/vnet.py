"""The V-Net that judges, alone: trained on any pairs, scored on real ones (section 5).

  python launch.py --config experiments/vnet.py
  python launch.py --config experiments/vnet.py \\
      --config.segment.stores=runs/vae_wgan/generated.zarr:all:200,real.zarr:train:all
  python launch.py --config experiments/vnet.py:paper --config.data.root=SKULLBREAK

Demo: mean Dice on unseen phantoms 0.70, at 512^3 0.69. Paper: not run here.
"""

from experiments import common


def get_config(size="demo"):
    """The V-Net on the run's own real pairs at a size: `smoke`, `demo`, `paper`."""
    config = common.defaults(size)
    config.stages = ("ingest", "segment", "evaluate", "explore", "gallery", "report")
    config.model_name = ""  # nothing generates
    config.phases = []
    config.segment.stores = "real.zarr:train:all"
    return config
