"""Train several Keras models together on one device, each exactly as if it were alone."""

from kerascohost.cohort import Cohort
from kerascohost.errors import CohortError
from kerascohost.history import CohortHistory
from kerascohost.plotting import plot_losses

__all__ = ["Cohort", "CohortError", "CohortHistory", "plot_losses"]
__version__ = "0.1.0"
