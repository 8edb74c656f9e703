"""A localised statistical shape model: generated skulls that are no one's (models/shape.py).

  python launch.py --config experiments/shape.py
  python launch.py --config experiments/shape.py \\
      --config.data.source=skulls --config.data.root=SKULLS
  python launch.py --config experiments/shape.py:paper --config.data.root=SKULLBREAK

It trains no network: its weights are deformations between the training skulls, and hold these.

Demo, the phases alone: 2 minutes on 2 slow cores, of 54 phantoms at 32^3; Dice of two skulls .63,
in the common shape .87. Of twelve BrainWeb skulls: 94 % of the defects in one piece, 3 % of the
skulls copies. What its pairs are worth was not measured yet. Paper: not run here.
"""

from experiments import common


def get_config(size="demo"):
    """The shape model at a size: `smoke`, `demo`, `paper`."""
    config = common.defaults(size)
    config.model_name = "shape"
    config.model.skulls = {"smoke": 8, "demo": 64, "paper": 120}[
        size
    ]  # that it is made of, at most
    config.model.pairs = 5 * config.model.skulls
    config.model.spread = 1.0  # of the deformations, in standard deviations
    config.model.coarse_rate = 0.35  # Adam's, in mm
    config.model.fine_rate = 0.25
    config.model.iterations = {"smoke": 20, "demo": 60, "paper": 260}[size]  # 20 an update
    config.phases = [
        dict(step="collect", updates=10) if size == "smoke" else dict(step="collect", epochs=1),
        dict(step="register", updates=config.model.iterations // 20),
    ]
    config.generate.batch_size = 8
    return config
