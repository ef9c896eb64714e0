"""What several benchmarks ask of the system."""

import os
import time


def seconds(function, *args):
    """The seconds that a call takes."""
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


def cores():
    """The numbers of the cores that this process may use; all, where a system does not tell."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def confine(core):
    """Confines this process to one core, where a system can: elsewhere it is left to the system."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
