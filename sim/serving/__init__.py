"""What happens to requests on a fleet? Request by request, on the engine's own scheduler."""

from sim.serving.metrics import latencies, littles_law_error, summary
from sim.serving.replay import replay, replay_fleet

__all__ = ["latencies", "littles_law_error", "replay", "replay_fleet", "summary"]
