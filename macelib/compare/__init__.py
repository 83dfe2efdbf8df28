"""Every method on one task, drawn and counted alike: `mace compare`, and the pages that show what was recorded.

`plan` says what is drawn, `measure` draws, `spent` says what that takes, `looking` looks, `residual` leaves a concept's
own words out, `counts` adds up, `rows` has means and intervals, `distance` how far kept pictures move, `tables` the
file, `run` all of it in turn; `attacking` attacks every method of a task; `kept` records it, `report` and `figures`
render that, `published` holds it against published tables.

It may import all that measures and erases, `batch.jobs` and `bench`; nothing of `show`, `lessons` or `cli`.
"""

from ..evaluate.tuned import tried
from . import report
from .attacking import LATER, SCOPE, Attacking, lacking, one_way, targets
from .kept import check_attacks, record, record_attacks
from .plan import PROFILES, WORLDS, Plan, Profile, Way, either, find, planned, tuned_settings, ways, worlds
from .published import agreement
from .run import compare, run_of
from .tables import metric_names

__all__ = [
    "LATER",
    "PROFILES",
    "SCOPE",
    "WORLDS",
    "Attacking",
    "Plan",
    "Profile",
    "Way",
    "agreement",
    "check_attacks",
    "compare",
    "either",
    "find",
    "lacking",
    "metric_names",
    "one_way",
    "planned",
    "record",
    "record_attacks",
    "report",
    "run_of",
    "targets",
    "tried",
    "tuned_settings",
    "ways",
    "worlds",
]  # fmt: skip
