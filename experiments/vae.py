"""The VAE, the paper's baseline.

  python launch.py --config experiments/vae.py
  python launch.py --config experiments/vae.py:paper --config.data.root=SKULLBREAK

Demo: 2 minutes on 2 quick cores to the pairs; Dice to the nearest training pair 0.82 (skull) and
0.55 (defect), of held-out phantoms 0.79 and 0.60. Paper: not run here.

The paper's baseline is trained as the preliminary stage of its IntroVAE (section 4.3): the size
`paper` has that stage's linear output and squared error. With sigmoids and cross-entropy, as in the
VAE of VAE/WGAN-GP: --config.model.head=independent.
"""

from experiments import common


def get_config(size="demo"):
    """The VAE at a size: `smoke`, `demo`, `paper`."""
    config = common.vae(common.defaults(size), size)
    config.model_name = "vae"
    if size == "paper":
        config.model.head = "linear"
    config.phases = {
        "smoke": [dict(step="vae", updates=6)],
        "demo": [dict(step="vae", updates=800)],
        "paper": [dict(step="vae", epochs=100)],
    }[size]
    return config
