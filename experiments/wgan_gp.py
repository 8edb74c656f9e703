"""WGAN-GP.

  python launch.py --config experiments/wgan_gp.py
  python launch.py --config experiments/wgan_gp.py:paper --config.data.root=SKULLBREAK

Demo: 16^3, 5 minutes on 2 cores to the pairs; Dice to the nearest training pair 0.86 (skull) and
0.56 (defect), of held-out phantoms 0.85 and 0.67. Paper: not run here.
"""

from experiments import common


def get_config(size="demo"):
    """WGAN-GP at a size: `smoke`, `demo`, `paper`."""
    config = common.wgan_gp(common.defaults(size), size)
    config.model_name = "wgan_gp"
    config.model.latents = "prior"
    if size == "demo":  # from random weights 32^3 takes hours on 2 cores
        config.data.threshold = 0.2
        config.model.resolution = 16
        config.model.widths = (32, 64)
    config.phases = {
        "smoke": [dict(step="wgan", updates=4, batches=5)],
        "demo": [dict(step="wgan", updates=2000, batches=5)],
        "paper": [dict(step="wgan", epochs=50, batches=5)],
    }[size]
    return config
