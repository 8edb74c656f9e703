"""IntroVAE, section 3.3.

python launch.py --config experiments/introvae.py
python launch.py --config experiments/introvae.py:paper --config.data.root=SKULLBREAK
"""

from experiments import common


def get_config(size="demo"):
    """IntroVAE at a size: `smoke`, `demo`, `paper`."""
    config = common.introvae(common.defaults(size), size)
    config.model_name = "introvae"
    config.phases = {
        "smoke": [dict(step="vae", updates=3), dict(step="intro", updates=3)],
        "demo": [dict(step="vae", updates=400), dict(step="intro", updates=200)],
        "paper": [dict(step="vae", epochs=10), dict(step="intro", epochs=90)],
    }[size]
    return config
