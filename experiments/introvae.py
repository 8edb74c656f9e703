"""IntroVAE, section 3.3.

  python launch.py --config experiments/introvae.py
  python launch.py --config experiments/introvae.py:paper --config.data.root=SKULLBREAK

Demo: Dice to the nearest training pair 0.81 (skull) and 0.54 (defect), of held-out phantoms 0.79
and 0.60; 4 % empty defects. Phase `vae` ends at a KL(real) of 79, and `intro` has half of the
reconstructions' hinges active and a sixth of the prior samples'. At another resolution, set
`config.model.margin` to what phase `vae` prints. Paper: not run here.
"""

from experiments import common


def get_config(size="demo"):
    """IntroVAE at a size: `smoke`, `demo`, `paper`."""
    config = common.introvae(common.defaults(size), size)
    config.model_name = "introvae"
    config.phases = {
        "smoke": [dict(step="vae", updates=3), dict(step="intro", updates=3)],
        "demo": [dict(step="vae", updates=450), dict(step="intro", updates=150)],
        "paper": [dict(step="vae", epochs=10), dict(step="intro", epochs=90)],
    }[size]
    return config
