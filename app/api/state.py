"""The parts of the service that requests share, built once in app.main."""

from dataclasses import dataclass

from app.admission import Admission
from app.api.auth import Guards
from app.api.shutdown import Shutdown
from app.batches.batches import Batches
from app.pipeline import Pipeline
from app.settings import Settings
from app.snowflake.self_check import SelfCheck
from app.telemetry.record import RefusalLog
from app.workers.pool import LiveClassifiers


@dataclass(frozen=True)
class ServiceState:
    """Its connections and classifier processes open when the application starts up, once."""

    settings: Settings
    guards: Guards | None
    """None if the service accepts every client."""
    shutdown: Shutdown
    refusals: RefusalLog
    classifiers: LiveClassifiers
    pipeline: Pipeline
    admission: Admission
    batches: Batches
    self_check: SelfCheck
