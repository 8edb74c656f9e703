"""VAE/WGAN-GP, section 3.2: the main job.

  python launch.py --config experiments/vae_wgan.py
  python launch.py --config experiments/vae_wgan.py \\
      --config.data.source=skulls --config.data.root=SKULLS
  python launch.py --config experiments/vae_wgan.py:paper --config.data.root=SKULLBREAK
  python launch.py --config experiments/vae_wgan.py --sweep=all

Demo: 16 minutes on 2 slow cores; Dice to the nearest training pair 0.80 (skull) and 0.54 (defect),
of held-out phantoms 0.79 and 0.60; a V-Net trained on the pairs has Dice 0.64 on unseen phantoms,
one trained on the real pairs 0.70, the ceiling 0.70. Paper: not run here.
"""

from experiments import common


def get_config(size="demo"):
    """The hybrid at a size: `smoke`, `demo`, `paper`."""
    config = common.defaults(size)
    config = common.wgan_gp(common.vae(config, size), size)
    config.model_name = "vae_wgan"
    config.model.warm_start = size != "paper"  # the generator starts as the VAE's decoder
    if config.model.warm_start:
        config.model.generator_norm = "group"
        config.model.learning_rate = 3e-5  # it only refines: at 2e-4 the vault gets pinholes
    config.phases = {
        "smoke": [
            dict(step="vae", updates=60),  # enough for pairs that are not empty
            dict(step="bridge", updates=2, batches=5),
            dict(step="wgan", updates=2, batches=5),
        ],
        "demo": [
            dict(step="vae", updates=800),
            dict(step="bridge", updates=20, batches=5),
            dict(step="wgan", updates=40, batches=5),
        ],
        "paper": [
            dict(step="vae", epochs=10),
            dict(step="bridge", epochs=15, batches=5),
            dict(step="wgan", epochs=50, batches=5),
        ],
    }[size]
    return config


def sweep(add):
    """Three seeds of the networks, on the same phantoms."""
    for seed in range(3):
        add(seed=seed)
