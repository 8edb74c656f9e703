"""Defaults shared by the experiments, and the three sizes.

smoke   16^3, seconds: every stage once, next to nothing learned
demo    32^3, minutes on 2 cores: the default
paper   128^3, SkullBreak, the hyper-parameters of section 4.3: needs a GPU, the extra `umap` and
        --config.data.root. It computes in float32; faster, in bfloat16, by
        --config.model.precision=bfloat16 --config.segment.model.precision=bfloat16
"""

from ml_collections import ConfigDict

from skullgen.data import measures

SIZES = ("smoke", "demo", "paper")


def defaults(size):
    """All fields but `model_name` and `phases`, at one of `SIZES`."""
    if size not in SIZES:
        raise ValueError(f"no size {size!r}: choose {', '.join(SIZES)}")
    config = ConfigDict()
    config.stages = (
        *("ingest", "train", "generate", "segment", "evaluate", "explore", "gallery", "report"),
    )
    config.seed = 0  # generate.seed, segment.seed and explore.seed are this one unless they are set
    config.stores = ""  # what a generator learns from: PATH:SPLIT:PAIRS, comma-separated, of any
    # run, or of the controls below (transplants.zarr:all:all); "": the training pairs
    config.init_from = ""  # weights that the generator starts from, as far as names and shapes fit:
    # a run's or a release's folder, or packaged ones, as demo; "": random
    config.batch_size = 16  # over all devices, or as many as have equal parts of it
    config.workers = 0  # processes for ingest and generate; 0: one a core
    config.log_every = 20  # updates between fetches of the metrics
    config.save_every = 100  # updates between checkpoints
    config.budget_mb = 2048  # packed pairs kept on the device; more are streamed
    config.deterministic = False  # True: a GPU's sums in one order, so that runs are bit-equal
    config.preview_minutes = 2.0  # between sheets of samples while training, at least; 0: none
    config.compilation_cache = "~/.cache/skullgen"  # "": none

    config.data = ConfigDict()
    config.data.source = "phantom"  # or skulls, skullbreak (SkullFix, too), triplets; store: pairs
    # that another run ingested; package.module: a source of your own
    config.data.root = ""  # folder of the source, FOLDER/** at any depth; or the store
    config.data.triplets = ConfigDict()  # folders or globs of data.source=triplets, from data.root
    config.data.triplets.skull = ""  # the defective skulls
    config.data.triplets.implant = ""
    config.data.triplets.complete = ""  # the complete skulls; "": each is its pair's union
    config.data.skulls = 72  # phantoms
    config.data.variety = ConfigDict()  # of phantoms, beyond anthropometry: `data.phantom.Variety`
    config.data.variety.spread = 1.0  # standard deviations of length, breadth, height, times this
    config.data.variety.thickness = (1.0, 1.0)  # of the bone, times this
    config.data.variety.asymmetry = 0.022  # standard deviation of the oblique skew
    config.data.variety.faceless = 0.0  # share without a face
    config.data.variety.floor_mm = (0.0, 0.0)  # of the frame's floor, where a scan ends
    config.data.variety.pinholes = 0  # at most
    config.data.variety.temporal = 0.0  # share of sides whose temporal squama is open
    config.data.variety.rough_mm = 0.0  # standard deviation of the surfaces, voxel by voxel
    config.data.kinds = ()  # of defect, package.module.function too; none: all five
    config.data.cuts = 1  # defects of each kind for each skull (phantom, skulls)
    config.data.seed = 0  # of phantoms, defects and the split
    config.data.threshold = 0.3  # share of bone that makes a voxel bone
    config.data.bone_hu = 0.0  # for CTs in Hounsfield units: bone is this or more; 0: masks
    config.data.label = ""  # of a segmentation: the value, or segment's name, that is bone
    config.data.form = ""  # of NIfTIs that contradict themselves: sform or qform; of neither: none
    config.data.space = ""  # of NRRDs and MetaImages that say none: LPS, RAS or LAS
    config.data.test = ""  # skulls' names, comma-separated; both empty: by fraction
    config.data.validation = ""
    config.data.test_fraction = 0.15
    config.data.validation_fraction = 0.1
    config.data.folds = 0  # cross-validation over skulls: the test skulls are those of
    config.data.fold = 0  # this fold
    config.data.reframe = True  # False: the files' own cube is the frame, as SkullBreak's
    config.data.strict = False  # True: a case that cannot be used ends the run, not left out
    config.data.licence = ""  # recorded in the store; "": that of the source, where it is known

    config.model = ConfigDict()
    config.model.resolution = 32
    config.model.widths = (16, 32, 64)  # channels, finest to coarsest
    config.model.latent = 48
    config.model.precision = "float32"  # or bfloat16, for GPUs
    config.model.head = "exclusive"  # or independent
    config.model.condition = False  # True: on the defect's kind, side and area
    config.model.groups = 8  # of group norm
    config.model.occupancy = (0.07, 0.006)  # where the head's bias starts: shares of voxels
    config.model.latents = "aggregate"  # or prior: what samples are drawn from

    config.generate = ConfigDict()
    config.generate.count = 256
    config.generate.weights = ""  # "": this run's; packaged ones, as demo; a run or release folder
    config.generate.first = 0  # number of the first sample
    config.generate.seed = config.get_oneway_ref("seed")
    config.generate.labels = ""  # of a conditional model: KIND:WEIGHT,...; "": as it learnt
    config.generate.where = ConfigDict()  # of which pairs alone, by `data.measures`: LOW,HIGH, a
    # word (left; temporal), or real: at most what 95 % of the real pairs have; "": all
    for name in measures.NAMES:
        config.generate.where[name] = ""
    config.generate.batch_size = 32  # samples a device decodes at once
    config.generate.channels = ""  # independent or exclusive; "": as model.head
    config.generate.threshold = 0.5
    config.generate.dust_mm3 = 2000.0  # components (by faces) of a smaller volume are removed

    config.segment = ConfigDict()  # the V-Net that judges
    config.segment.model_name = "vnet"
    config.segment.stores = ""  # PATH:SPLIT:PAIRS, comma-separated; "": this run's generated pairs
    config.segment.controls = ("real",)  # what it is compared with, a V-Net on each: `real` pairs;
    # `fresh` defects cut into the training skulls; `transplants`, the training defects carried onto
    # them; varied `phantoms`; `ceiling`, fresh defects in the test skulls too. Ingest makes those
    # that are named here or in `stores` (fresh.zarr, ...)
    config.segment.control_pairs = 300  # in each of them, about
    config.segment.init_from = (
        ""  # the same for all V-Nets of the run: from its `vnet`, or only one
    )
    config.segment.seed = config.get_oneway_ref("seed")
    config.segment.updates = 800
    config.segment.batch_size = 4  # over all devices, or as many as have equal parts of it
    config.segment.save_every = 200
    config.segment.model = ConfigDict()
    config.segment.model.widths = (16, 32, 64)  # channels, finest to coarsest
    config.segment.model.stem = 2  # blocks of 2^3 voxels are channels of the finest stage; 1: none
    config.segment.model.kernel = 3
    config.segment.model.down = (1, 2, 2)  # convolutions of each stage
    config.segment.model.up = (2, 1)  # from the coarsest but one to the finest
    config.segment.model.norm = "group"  # or batch, none
    config.segment.model.groups = 4
    config.segment.model.precision = "float32"
    config.segment.model.learning_rate = 4e-3
    config.segment.model.decay_steps = 0  # updates of a cosine decay to 0; 0: constant

    for model in (config.model, config.segment.model):
        model.augment = False  # pairs that are learnt from: flips, and the three below at random
        model.rotation_degrees = 8.0  # about an axis of any direction, at most
        model.scaling = 0.08  # of each axis, at most
        model.shift_mm = 6.0  # along each axis, at most

    config.evaluate = ConfigDict()
    config.evaluate.pairs = 200  # generated pairs that are compared, at most
    config.evaluate.cases = 40  # pairs scored that nets or generators learnt from, at most; 0: all
    config.evaluate.batch_size = 8  # pairs that a V-Net takes at once
    config.evaluate.stores = ""  # more to test on, a column each: PATH:SPLIT:PAIRS, comma-separated
    config.evaluate.rules = True  # score the mean skull and the mirror image too
    config.evaluate.threshold = 0.5
    config.evaluate.metrics = ()  # of your own: package.module.function

    config.predict = ConfigDict()  # an implant for a skull's file; research only
    config.predict.file = ""  # defective skulls: files and folders of them, comma-separated
    config.predict.net = ""  # vnet, or vnet_real (of the real pairs); "": vnet, or the only one
    config.predict.weights = ""  # whose net: a release's folder, packaged weights; "": this run's
    config.predict.bone_hu = 0.0  # for CTs in Hounsfield units: bone is this or more; 0: masks
    config.predict.label = ""  # the next three: as those of data
    config.predict.form = ""
    config.predict.space = ""
    config.predict.threshold = 0.5  # probability above which a voxel is implant
    config.predict.dust_mm3 = 2000.0  # pieces of a smaller volume are removed
    config.predict.folder = ""  # for what is made; "": predictions/ in the work directory

    config.explore = ConfigDict()
    config.explore.pairs = 200  # of each group in a map, at most
    config.explore.stores = ""  # generated stores in the maps, comma-separated; "": this run's
    config.explore.perplexity = 30.0  # t-SNE's
    config.explore.umap = False  # needs the extra `umap`
    config.explore.steps = 6  # pairs of an interpolation
    config.explore.seed = config.get_oneway_ref("seed")

    config.gallery = ConfigDict()
    config.gallery.pairs = 2000  # of each store to leaf through, the first ones at most

    config.export = ConfigDict()  # the stage `export`: pairs as files for other programs
    config.export.store = "generated.zarr"  # or real.zarr, or a path
    config.export.format = ("nifti",)  # or skullbreak, nnunet, stl; several
    config.export.folder = ""  # with a folder of each format in it; "": export/ of the run
    config.export.rows = ""  # FIRST:STOP; "": all
    config.export.split = ""  # train, validation or test; "": all, as of generated pairs
    config.export.voxel_mm = 0.0  # a finer grid, interpolated; 0: the store's own
    config.export.dataset = "Dataset501_Skullgen"  # nnU-Net's folder of it

    if size == "demo":  # no torn piece, no copy
        config.generate.where.update(pieces="1", pinholes="real", nearest_skull="real")
    if size == "demo":  # a judge that converges in minutes: blocks of voxels, augmentation, decay
        config.segment.controls = ("real", "transplants", "ceiling")
        config.segment.model.augment = True
        config.segment.model.decay_steps = config.segment.get_oneway_ref("updates")
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
        config.segment.updates = 4
        config.segment.model.widths = (4, 8)
        config.segment.model.stem = 1
        config.segment.model.down = (1, 1)
        config.segment.model.up = (1,)
        config.evaluate.cases = 3
        config.export.voxel_mm = 6.4  # files' voxels are 10 mm at most
    if size == "paper":
        config.batch_size = 8
        config.log_every = 50
        config.save_every = 500
        config.data.source = "skullbreak"
        config.data.threshold = 0.5
        config.model.resolution = 128
        config.model.widths = (64, 128, 256, 512)
        config.model.latent = 200
        config.model.head = "independent"
        config.model.groups = 32
        config.model.occupancy = (0.045, 0.003)
        config.model.latents = "prior"
        config.generate.count = 40_000
        config.generate.batch_size = 32
        config.generate.dust_mm3 = 409.6  # 100 voxels of 1.6 mm
        config.segment.updates = 20_000
        config.segment.batch_size = 8
        config.segment.save_every = 1000
        config.segment.model.stem = 1
        config.segment.model.learning_rate = 1e-3
        config.segment.model.widths = (8, 16, 32, 64, 128)
        config.segment.model.kernel = 5
        config.segment.model.down = (2, 2, 3, 3, 3)
        config.segment.model.up = (3, 3, 2, 1)
        config.segment.model.groups = 8
        config.evaluate.cases = 600
        config.explore.umap = True
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
    config.model.critic_norm = "layer"  # over D, H, W, C; or group, none
    config.model.momentum = 0.99 if size == "paper" else 0.9  # of batch norm's averages
    return config


def introvae(config, size):
    """Adds IntroVAE's fields to `config.model`; `margin` is for the sizes' own resolutions."""
    small = size != "paper"
    config.model.head = "linear"
    config.model.learning_rate = 3e-4 if small else 1e-3  # of both networks
    config.model.alpha = 0.25
    config.model.beta = 40.0 if small else 1.0
    config.model.margin = 85.0 if small else 10.0  # a little above the KL that phase `vae` prints
    config.model.channel_weights = (1.0, 8.0) if small else (1.0, 1.0)  # of squared errors
    config.generate.channels = "exclusive" if small else ""
    config.model.pool = "flatten" if small else "average"
    config.model.posterior_momentum = 0.99
    return config
