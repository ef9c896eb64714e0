"""The use of a computation beside time: seconds of processors, utilisation and energy of a GPU.

The GPU's figures are those of NVIDIA's management library, by its own Python package
(`nvidia-ml-py`, the extra `gpu`): https://docs.nvidia.com/deploy/nvml-api.
"""

import contextlib
import dataclasses
import functools
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType

from kerascohost import backends

# Seconds from one reading of the utilisation to the next.
_PERIOD = 0.05


@dataclasses.dataclass
class Usage:
    """The use of a block.

    Attributes:
        cpu_s: The seconds that the process has had of all processors together.
        gpu_utilization: The share of the time, from 0 to 1, in which the GPU was busy, with all
            that runs on it; NaN where it is not known.
        energy_j: The energy that the GPU has taken, in joules; NaN where it is not known.
    """

    cpu_s: float = math.nan
    gpu_utilization: float = math.nan
    energy_j: float = math.nan


@contextlib.contextmanager
def measured() -> Iterator[Usage]:
    """Measures what the block uses.

    Yields:
        The usage, which is complete when the block has ended.
    """
    used, device, shares = Usage(), _device(), []
    energy = math.nan if device is None else device.energy_j()
    with contextlib.ExitStack() as entered:
        if device is not None:
            shares = entered.enter_context(device.sampling())
        began = time.process_time()
        yield used
        used.cpu_s = time.process_time() - began
    if device is not None:
        used.energy_j = device.energy_j() - energy
        used.gpu_utilization = statistics.fmean(shares) if shares else math.nan


class _Device:
    """A GPU, as NVIDIA's library knows it.

    Args:
        library: The module `pynvml`, which has been initialised.
        index: The number of the GPU.
    """

    def __init__(self, library: ModuleType, index: int):
        self._library = library
        self._handle = library.nvmlDeviceGetHandleByIndex(index)

    def energy_j(self) -> float:
        """Returns the energy taken since the driver was loaded; NaN where it is not counted."""
        return self._asked(
            lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        )

    def _share(self) -> float:
        return self._asked(
            lambda: self._library.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        )

    def _asked(self, question: Callable[[], float]) -> float:
        try:
            return question()
        except self._library.NVMLError:  # not every GPU answers each question
            return math.nan

    @contextlib.contextmanager
    def sampling(self) -> Iterator[list[float]]:
        """Reads the utilisation while the block runs; yields the list of what was read."""
        shares: list[float] = []
        ended = threading.Event()

        def read() -> None:
            while not ended.wait(_PERIOD):
                shares.append(self._share())

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield shares
        finally:
            ended.set()
            thread.join()


@functools.cache
def _device() -> _Device | None:
    """Returns the first GPU that the process may use; `None` if there is none, or no library."""
    if backends.get_backend().device_bytes() is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        pynvml.nvmlInit()
        return _Device(pynvml, int(visible) if visible.isdigit() else 0)
    except pynvml.NVMLError:
        return None
