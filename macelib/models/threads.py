"""How PyTorch's threads wait for work: briefly, so that a busy machine is not kept busier by threads that spin.

Threads that compute side by side, each a part of a batch, wait for each other once a pass and not at every operation.

OpenMP's threads spin between two pieces of work, for milliseconds at a time. Where another process wants the same
cores, each piece then waits for the slowest thread, and drawing takes five to nine times longer. Threads that soon
sleep cost a few percent on an idle machine. OpenMP reads these variables once, when PyTorch is loaded.
"""

import logging
import os
import sys
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

log = logging.getLogger(__name__)
WAITING = {
    "GOMP_SPINCOUNT": "10000",
    "KMP_BLOCKTIME": "1",
}  # turns, of GNU's OpenMP; milliseconds, of LLVM's and Intel's
OTHERS = ("OMP_WAIT_POLICY", "KMP_LIBRARY")  # that say the same
_late = False


def wait_briefly(environment: MutableMapping[str, str] | None = None) -> None:
    """Set `WAITING` unless the user has said how threads wait; remember where PyTorch was there first."""
    global _late
    environment = os.environ if environment is None else environment
    if any(name in environment for name in (*WAITING, *OTHERS)):
        return
    _late = "torch" in sys.modules
    environment.update(WAITING)  # of the processes that this one starts, even where it is late for itself


def say_if_late(device: str, threads: int) -> None:
    """A warning, once, that PyTorch was loaded before the setting, where it computes with several threads of a CPU."""
    global _late
    if _late and device == "cpu" and threads > 1:
        _late = False
        log.warning(
            "PyTorch was loaded before macelib, so its threads spin while they wait: beside another busy process, "
            "drawing takes several times longer. Import macelib first, or start Python with GOMP_SPINCOUNT=10000."
        )


@cache
def workers(count: int, threads: int) -> ThreadPoolExecutor:
    """So many threads of Python, whose operations are spread over so many of the processor's each."""
    import torch

    before, begun = torch.get_num_threads(), Barrier(count)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
    for waiting in [pool.submit(begun.wait) for _ in range(count)]:
        waiting.result()
    torch.set_num_threads(before)  # what later threads begin with, too
    return pool
