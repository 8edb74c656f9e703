"""Defaults shared by the experiments, and the three sizes.

smoke   16^3, seconds: every stage once, nothing learned
demo    32^3, minutes on 2 cores: the default
paper   128^3, SkullBreak, the hyper-parameters of section 4.3: needs a GPU and --config.data.root
"""

from ml_collections import ConfigDict

SIZES = ("smoke", "demo", "paper")


def defaults(size):
    """All fields but `model_name` and `phases`, at one of `SIZES`."""
    if size not in SIZES:
        raise ValueError(f"no size {size!r}: choose {', '.join(SIZES)}")
    config = ConfigDict()
    config.stages = "ingest,train,generate,evaluate,report"
    config.seed = 0
    config.batch_size = 16  # over all devices
    config.workers = 0  # processes for ingest and generate; 0: one a core
    config.log_every = 20  # updates between fetches of the metrics
    config.save_every = 100  # updates between checkpoints
    config.keep = 2  # newest checkpoints kept, beside those at the ends of phases
    config.budget_mb = 2048  # packed pairs kept on the device; more are streamed
    config.tensorboard = False  # needs the extra `tensorboard`
    config.compilation_cache = "~/.cache/skullgen"  # "": none

    config.data = ConfigDict()
    config.data.source = "phantom"  # or skulls, skullbreak
    config.data.root = ""  # folder of the source; phantoms have none
    config.data.skulls = 72  # phantoms
    config.data.cuts = 1  # defects of each kind for each skull (phantom, skulls)
    config.data.seed = 0  # of phantoms, defects and the split
    config.data.threshold = 0.3  # share of bone that makes a voxel bone
    config.data.bone_hu = 0.0  # for CTs in Hounsfield units: bone is this or more; 0: masks
    config.data.test = ""  # skulls' names, comma-separated; both empty: by fraction
    config.data.validation = ""
    config.data.test_fraction = 0.15
    config.data.validation_fraction = 0.1
    config.data.licence = ""  # recorded in the store; "": that of the source, where it is known

    config.model = ConfigDict()
    config.model.resolution = 32
    config.model.widths = (16, 32, 64)  # channels, finest to coarsest
    config.model.latent = 48
    config.model.precision = "float32"  # or bfloat16, for GPUs
    config.model.head = "exclusive"  # or independent
    config.model.groups = 8  # of group norm
    config.model.occupancy = (0.07, 0.006)  # where the head's bias starts: shares of voxels
    config.model.latents = "aggregate"  # or prior: what samples are drawn from

    config.generate = ConfigDict()
    config.generate.count = 256
    config.generate.first = 0  # number of the first sample
    config.generate.seed = 0
    config.generate.batch_size = 32  # samples a device decodes at once
    config.generate.channels = ""  # independent or exclusive; "": as model.head
    config.generate.threshold = 0.5
    config.generate.dust_mm3 = 2000.0  # components of a smaller volume are removed
    config.generate.connectivity = 6  # neighbours that make a component: 6, 18, 26

    config.evaluate = ConfigDict()
    config.evaluate.pairs = 200  # generated pairs that are compared, at most

    if size == "smoke":
        config.batch_size = 4
        config.log_every = 2
        config.save_every = 2
        config.data.skulls = 8
        config.data.threshold = 0.2
        config.model.resolution = 16
        config.model.widths = (8, 16)
        config.model.latent = 8
        config.generate.count = 20
        config.generate.batch_size = 8
    if size == "paper":
        config.batch_size = 8
        config.log_every = 50
        config.save_every = 500
        config.data.source = "skullbreak"
        config.data.threshold = 0.5
        config.model.resolution = 128
        config.model.widths = (64, 128, 256, 512)
        config.model.latent = 200
        config.model.precision = "bfloat16"
        config.model.head = "independent"
        config.model.groups = 32
        config.model.occupancy = (0.045, 0.003)
        config.model.latents = "prior"
        config.generate.count = 40_000
        config.generate.batch_size = 32
        config.generate.dust_mm3 = 409.6  # 100 voxels of 1.6 mm
    return config


def vae(config, size):
    """Adds the VAE's fields to `config.model`."""
    config.model.vae_learning_rate = 1e-3
    config.model.kl_weight = 1.0 if size == "paper" else 2.0
    # Of skull and defect voxels: at 1 a sparse defect is ignored for hundreds of updates.
    config.model.channel_weights = (1.0, 1.0) if size == "paper" else (1.0, 4.0)
    config.model.pool = "average" if size == "paper" else "flatten"
    config.model.posterior_momentum = 0.99
    return config


def wgan_gp(config, size):
    """Adds WGAN-GP's fields to `config.model`."""
    config.model.learning_rate = 2e-4  # the generator's
    config.model.critic_learning_rate = 2e-4
    config.model.b1 = 0.5
    config.model.b2 = 0.9
    config.model.penalty = 100.0 if size == "paper" else 10.0  # lambda of equation 3
    config.model.generator_norm = "batch"
    config.model.critic_norm = "layer"  # over D, H, W, C; or channel, none
    config.model.momentum = 0.99 if size == "paper" else 0.9  # of batch norm's averages
    return config
