"""The toy model's experiment: all stages in seconds."""

from ml_collections import ConfigDict

from experiments import common


def get_config(size="smoke"):
    config = common.defaults(size)
    config.stages = ("ingest", "train", "generate", "segment", "evaluate", "report")
    config.model_name = "tests.toy"
    config.model.resolution = 8
    config.model.learning_rate = 0.1
    config.model.breaks_at = -1
    config.model.head = "independent"
    config.data.source = "tests.toy_source"
    config.data.skulls = 4
    config.data.threshold = 0.1
    config.generate.count = 300
    config.save_every = 10
    config.segment.model_name = "tests.toy_net"
    config.segment.model = ConfigDict({"learning_rate": 0.1, "augment": False})
    config.segment.updates = 60
    config.segment.save_every = 10
    config.evaluate.cases, config.evaluate.rules = 2, False
    config.log_every = 5
    config.phases = [dict(step="toy", updates=30), dict(step="more", updates=40, batches=2)]
    return config
