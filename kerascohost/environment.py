"""Checks that Keras has a backend, and collects the versions that a bug report needs."""

import contextlib
import importlib.metadata
import importlib.util
import platform
import sys
import warnings
from collections.abc import Iterator

BACKENDS = ("tensorflow", "jax", "torch")

# The extras of this package, each of which installs a backend.
EXTRAS = ("tensorflow", "cpu", "gpu", "jax", "torch")

# The newest Keras that the tests have passed with.
_NEWEST_TESTED = (3, 15)

_REPORTED = ("numpy", "pandas", "matplotlib", "anywidget", "ipywidgets", "jupyterlab")


def _no_backend(missing: str) -> str:
    """Returns an error text for a Keras without a backend: what is missing, and what helps."""
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    settings = " or ".join(f"KERAS_BACKEND={name}" for name in found or BACKENDS[1:])
    if found:
        way = f"Set {settings}, which is installed, or install `kerascohost[{missing}]`."
    else:
        extras = ", ".join(f"`kerascohost[{name}]`" for name in EXTRAS)
        way = f"Install one of {extras}; with the last two set {settings}."
    return f"Expected a backend for Keras. Received: {missing} is not installed. {way}"


# Without its backend Keras cannot be imported, and its error names a module that the user has not
# heard of. This is the first module that kerascohost imports, so the error is explained here.
try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in BACKENDS:
        raise
    raise ImportError(_no_backend(error.name)) from None


def _warn_if_untested(keras_version: str) -> None:
    """Warns of a Keras that is newer than any that the tests have passed with."""
    newest = ".".join(map(str, _NEWEST_TESTED))
    if tuple(map(int, keras_version.split(".")[:2])) > _NEWEST_TESTED:
        warnings.warn(
            f"Keras {keras_version} is newer than any that kerascohost has been tested with "
            f"({newest}): compare an important result with that of plain `fit`.",
            stacklevel=4,  # where the program imports kerascohost
        )


_warn_if_untested(keras.__version__)


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Names the extra that installs a library, if an import within the block does not find it.

    Args:
        name: The extra of this package.

    Raises:
        ImportError: If a module is not found.

    Example:

    >>> with extra("tuner"):
    ...     import a_tuner
    Traceback (most recent call last):
    ImportError: Expected `a_tuner` to be installed, as `pip install "kerascohost[tuner]"` does.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise ImportError(
            f'Expected `{missing}` to be installed, as `pip install "kerascohost[{name}]"` does.'
        ) from error


def versions() -> dict[str, str]:
    """Returns the versions of everything that matters to kerascohost, for a bug report.

    Returns:
        A dict from names of packages, and `"python"`, `"backend"` and `"devices"`, to texts.

    Example:

    >>> list(versions())[:4]
    ['kerascohost', 'python', 'keras', 'backend']
    """
    backend = keras.backend.backend()
    module = sys.modules.get(backend)
    return {
        "kerascohost": version("kerascohost"),
        "python": f"{platform.python_version()} ({platform.platform()})",
        "keras": keras.__version__,
        "backend": f"{backend} {getattr(module, '__version__', '')}".strip(),
        "devices": ", ".join(_devices()),
        **{name: version(name) for name in _REPORTED},
    }


def _devices() -> list[str]:
    """Returns the names of the backend's devices; Keras does not list those of torch."""
    if keras.backend.backend() == "torch":
        return [f"cuda:{i}" for i in range(sys.modules["torch"].cuda.device_count())] or ["cpu:0"]
    return [str(device) for device in keras.distribution.list_devices()]


def version(distribution: str) -> str:
    """Returns the version of an installed distribution, or `"not installed"`."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
