"""What a stock SuperNode runs: rootlet's participant behind a ClientApp."""

from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp

from rootlet.data import ArrayData
from rootlet.flower import client_app
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.signing import load_public_key

app = ClientApp()


@app.train()
def train(message, context):
    config = context.run_config
    bundle = Bundle.load(Path(config["bundle"]), trusted_keys=[load_public_key(config["key"])])
    data = ArrayData.split(examples(context.node_config["data"]))
    return client_app(bundle, data, rng=np.random.default_rng(7))(message, context)


def examples(path):
    with np.load(path) as loaded:
        return loaded["x"], loaded["y"]
