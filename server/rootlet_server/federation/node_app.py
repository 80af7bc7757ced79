"""The `ClientApp` of the same run, for those who join with a stock Flower SuperNode.

The SuperNode's owner names the files in the node configuration, never the server:

    flower-supernode ... --node-config 'bundle="/d/m.rootlet" trusted-key="/d/k.pub.pem"
    data="/d/x.npz"'

An enrolled node adds `enrolment="/d/enrolment"`, and takes part in secure rounds.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from rootlet.data import ArrayData, load_npz
from rootlet.flower import client_app
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.signing import load_public_key
from rootlet_server.errors import ServeConfigError

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a `train` request as a rootlet device does."""
    return _participant(context)(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an `evaluate` request as a rootlet device does."""
    return _participant(context)(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer a stage of a secure round as a rootlet device does."""
    return _participant(context)(message, context)


def _participant(context: Context) -> ClientApp:
    names = ("bundle", "trusted-key", "data")
    missing = [name for name in names if name not in context.node_config]
    if missing:
        raise ServeConfigError(
            f"the node configuration lacks {', '.join(missing)}; start the SuperNode with "
            '--node-config \'bundle="..." trusted-key="..." data="..."\''
        )
    bundle, key, data = (Path(str(context.node_config[name])) for name in names)
    enrolment = context.node_config.get("enrolment")
    return client_app(
        Bundle.load(bundle, trusted_keys=[load_public_key(key)]),
        ArrayData.split(load_npz(data)),
        enrolment=Path(str(enrolment)) if enrolment is not None else None,
    )
