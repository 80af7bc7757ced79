"""The Flower `ServerApp` that runs the rounds; the SuperLink's run names the plan by its path."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from rootlet_server.federation.central import central_evaluation
from rootlet_server.federation.events import EventLog, RunFinished
from rootlet_server.federation.feedback import feedback_file
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.rounds import RoundLoop

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan's rounds and report the end, good or bad, as the last event.

    Args:
        grid: Flower's link to the devices.
        context: Its run config names the plan: `plan = "/path/to/plan.json"`.
    """
    plan = FederationPlan.load(Path(str(context.run_config["plan"])))
    log = EventLog(plan.events_path)
    try:
        loop = RoundLoop(
            grid, plan, log, central=central_evaluation(plan), feedback=feedback_file(plan)
        )
        log.write(RunFinished(rounds=loop.run().round))
    except Exception as error:
        log.write(RunFinished(rounds=0, error=f"{type(error).__name__}: {error}"))
        raise
    finally:
        log.close()
