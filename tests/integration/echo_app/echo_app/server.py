"""A ServerApp that asks every node and writes down what came back."""

import json
import time
import traceback
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    result = Path(config["result"])
    try:
        nodes = wait_for_nodes(grid, config["nodes"], config["timeout-s"])
        if config["mode"] == "fedavg":
            fedavg(grid, config, result)
        else:
            exchange(grid, config, nodes, result)
    except Exception:
        result.with_suffix(".error").write_text(traceback.format_exc())
        raise


def wait_for_nodes(grid, wanted, timeout_s):
    deadline = time.monotonic() + timeout_s
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(nodes)} nodes, {wanted} wanted")
        time.sleep(0.1)
    return nodes


def fedavg(grid, config, result):
    """One round of Flower's own FedAvg over all nodes; its average is written as .npz."""
    with np.load(config["initial"]) as loaded:
        initial = ArrayRecord({name: Array(value) for name, value in loaded.items()})
    settings = json.loads(Path(config["initial"]).with_suffix(".json").read_text())
    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=config["nodes"],
        min_available_nodes=config["nodes"],
    )
    configure, aggregate, replies = strategy.configure_train, strategy.aggregate_train, []

    def configure_train(server_round, arrays, config, grid):
        # Flower adds its own key to the config; rootlet's contract has `round` instead.
        messages = list(configure(server_round, arrays, ConfigRecord(settings), grid))
        for message in messages:  # they share one record
            if "server-round" in message.content["config"]:
                del message.content["config"]["server-round"]
        return messages

    def aggregate_train(server_round, answers):
        replies.extend(answers := list(answers))
        return aggregate(server_round, answers)

    strategy.configure_train, strategy.aggregate_train = configure_train, aggregate_train
    outcome = strategy.start(grid=grid, initial_arrays=initial, num_rounds=1)
    saved = {f"average:{name}": array.numpy() for name, array in outcome.arrays.items()}
    for number, reply in enumerate(replies):
        metrics = dict(reply.content["metrics"])
        saved[f"weight:{number}"] = np.array(metrics["num-examples"])
        for name, array in reply.content["arrays"].items():
            saved[f"reply{number}:{name}"] = array.numpy()
    np.savez(result.with_suffix(".tmp.npz"), **saved)
    result.with_suffix(".tmp.npz").rename(result)


def exchange(grid, config, nodes, result):
    """Send `w` to every node for some rounds; the answers are written as JSON lines."""
    for number in range(1, config["rounds"] + 1):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(np.full(4, number, np.float32))}),
                "config": ConfigRecord({"round": number}),
            }
        )
        messages = [Message(content, node, "train", group_id=str(number)) for node in nodes]
        wanted = set(grid.push_messages(messages))
        time.sleep(config["pause-s"])
        deadline = time.monotonic() + config["timeout-s"]
        while wanted and time.monotonic() < deadline:
            for reply in grid.pull_messages(wanted):
                wanted.discard(reply.metadata.reply_to_message_id)
                append(result, number, reply)
            time.sleep(0.05)
        append(result, number, None)


def append(result, number, reply):
    line = {"round": number, "done": reply is None, "at": time.time()}
    if reply is not None and reply.has_error():
        line |= {"error": reply.error.code, "reason": reply.error.reason}
    elif reply is not None:
        line |= {
            "node": reply.metadata.src_node_id,
            "w": reply.content["arrays"]["w"].numpy().tolist(),
            "metrics": dict(reply.content["metrics"]),
        }
    with result.open("a") as file:
        file.write(json.dumps(line) + "\n")
