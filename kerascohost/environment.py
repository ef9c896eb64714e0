"""What kerascohost runs on: the backend that Keras needs, and the versions for a bug report."""

import importlib.metadata
import importlib.util
import platform
import sys

BACKENDS = ("tensorflow", "jax", "torch")

# Of this package, each of which brings a backend.
EXTRAS = ("tensorflow", "cpu", "gpu", "jax", "torch")

_REPORTED = ("numpy", "pandas", "matplotlib", "ipywidgets", "jupyterlab")


def _no_backend(missing: str) -> str:
    """A line for those whose Keras has no backend: what is missing, and what helps."""
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    settings = " or ".join(f"KERAS_BACKEND={name}" for name in found or BACKENDS[1:])
    if found:
        way = f"Set {settings}, which is installed, or install `kerascohost[{missing}]`."
    else:
        extras = ", ".join(f"`kerascohost[{name}]`" for name in EXTRAS)
        way = f"Install one of {extras}; with the last two set {settings}."
    return f"Expected a backend for Keras. Received: {missing} is not installed. {way}"


# Keras itself cannot be imported without its backend, and then names a module that nobody asked
# for. This module is the first that kerascohost imports, so here is where it can be told.
try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in BACKENDS:
        raise
    raise ImportError(_no_backend(error.name)) from None


def versions() -> dict[str, str]:
    """The versions of everything that matters to kerascohost, as a bug report needs them.

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
    """The devices of the backend; Keras lists those of torch nowhere."""
    if keras.backend.backend() == "torch":
        return [f"cuda:{i}" for i in range(sys.modules["torch"].cuda.device_count())] or ["cpu:0"]
    return [str(device) for device in keras.distribution.list_devices()]


def version(distribution: str) -> str:
    """The version of an installed distribution, or that there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
