"""A ServerApp, unchanged, on a simulated fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from rootlet_runtime.bundle import Bundle
from rootlet_server.simulation.crews import hire
from rootlet_server.simulation.fleet import Fleet
from rootlet_server.simulation.grid import VectorGrid
from rootlet_server.simulation.population import fit_to_bundle
from rootlet_server.simulation.replies import in_a_run
from rootlet_server.simulation.work import Job

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.population import Population


def run_server_app(
    app: ServerApp,
    bundle: Bundle,
    clients: Population,
    *,
    seed: int,
    training: LocalTraining,
    workers: int = 1,
    chunk_size: int = 128,
    run_config: dict[str, bool | float | int | str] | None = None,
) -> Context:
    """Run a Flower ServerApp over simulated clients that answer one by one.

    Args:
        app: any ServerApp of Flower's present interface; nothing in it changes.
        bundle: what the clients run.
        clients: who they are; node n is client n - 1.
        seed: of the clients' orders of examples. What the app itself draws is its own affair.
        training: what a client does where a message does not say.
        workers: processes of this machine.
        chunk_size: clients trained at once.
        run_config: the app's configuration.

    Returns:
        The app's context, as it left it.
    """
    population = fit_to_bundle(clients, bundle.manifest)
    job = Job(bundle=bundle.path, population=population, seed=seed, vectorise=True)
    crew = hire(job, workers)
    try:
        fleet = Fleet(
            bundle=bundle, population=population, crew=crew, training=training,
            chunk_size=chunk_size,
        )  # fmt: skip
        context = Context(
            run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config or {}
        )
        with in_a_run():
            app(VectorGrid(fleet), context)
        return context
    finally:
        crew.close()
