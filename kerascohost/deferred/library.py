"""Knowledge of what functions of packages change besides what they return, by name."""

import random
import types

import numpy as np

from kerascohost.tracing.places import UserObject

# Methods that wait for those of other iterations.
TRAINS = frozenset({"fit", "evaluate", "predict"})
# Other methods and functions inside which a model may be trained.
MAY_TRAIN = frozenset({"fit_transform", "fit_predict", "score", "cross_val_score"})

# Packages whose functions change nothing but what they are given, except for those named below.
TRUSTED = frozenset(
    {"builtins", "collections", "copy", "datetime", "gc", "itertools", "jax", "json", "keras"}
    | {"math", "numpy", "operator", "os", "pandas", "pathlib", "posixpath", "random", "re"}
    | {"scipy", "sklearn", "statistics", "string", "tensorflow", "time", "torch", "tqdm"}
    | {"glob", "shutil", "pickle", "_pickle", "io", "_io", "genericpath", "_random", "joblib"}
    | {"_operator", "posix", "nt", "ntpath", "_json", "_collections", "_bisect", "_heapq", "heapq"}
    | {"bisect", "jaxlib", "ml_dtypes", "types", "_datetime", "functools", "_functools"}
)
OF_FILES = frozenset({"glob", "shutil", "pickle", "_pickle", "io", "_io", "joblib", "posix", "nt"})
PURE_OF_OS = frozenset(
    {"join", "basename", "dirname", "splitext", "split", "getcwd", "getpid", "cpu_count", "get"}
)
# Functions and methods that read or write files, by name.
FILES = frozenset(
    {"open", "save", "save_weights", "load", "load_weights", "load_model", "save_model", "savez"}
    | {"savez_compressed", "savetxt", "loadtxt", "genfromtxt", "fromfile", "tofile", "to_csv"}
    | {"to_pickle", "to_parquet", "to_json", "to_excel", "to_hdf", "to_sql", "to_feather", "dump"}
    | {"read_csv", "read_parquet", "read_json", "read_pickle", "read_excel", "write", "writelines"}
    | {"write_text", "write_bytes", "read_text", "read_bytes", "exists", "is_file", "is_dir"}
    | {"mkdir", "makedirs", "unlink", "rmdir", "touch", "rename", "export", "save_img", "load_img"}
    | {"get_file", "image_dataset_from_directory", "read", "readline", "readlines", "close"}
    | {"TFRecordDataset", "TextLineDataset", "list_files", "cache", "rglob", "glob", "read_file"}
    | {"iterdir", "stat", "memmap", "plot_model", "flush", "truncate", "writerow", "writerows"}
)
# What changes the process, or code that is not seen.
REFUSED = frozenset(
    {"exec", "eval", "globals", "locals", "vars", "input", "breakpoint", "exit", "quit"}
    | {"__import__", "delattr", "clear_session", "partial", "lru_cache", "wraps"}
    | {"cached_property", "singledispatch", "system", "custom_object_scope", "CustomObjectScope"}
    | {"get_custom_objects", "py_function", "numpy_function", "seterr", "seterrcall", "errstate"}
    | {"filterwarnings", "simplefilter", "putenv", "chdir", "option_context", "freeze"}
    | {"memoryview", "ChainMap", "methodcaller", "query"}
)
# Modules and objects that configure a package.
CONFIGURES = frozenset(
    {"config", "compat", "debugging", "distribute", "profiler", "mixed_precision", "gfile"}
    | {"environ", "rcParams", "run_functions_eagerly"}
)
WRITES_FILES = frozenset(
    {"ModelCheckpoint", "CSVLogger", "BackupAndRestore", "TensorBoard", "RemoteMonitor"}
)
SETTERS = ("set_", "enable_", "disable_", "register_", "experimental_", "use_")
# Functions that change their first argument.
CHANGES_FIRST = frozenset(
    {"shuffle", "heappush", "heappop", "heapify", "heappushpop", "heapreplace", "insort"}
    | {"insort_left", "insort_right", "copyto", "put", "put_along_axis", "fill_diagonal", "place"}
    | {"putmask", "next", "setattr", "anext", "setitem", "delitem", "iadd", "isub", "imul"}
    | {"itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "iconcat"}
    | {"ilshift", "irshift"}
)
# Functions and methods of NumPy that change an argument other than the first, if it is given.
MAY_HAVE_OUT = frozenset(
    {"all", "any", "argmax", "argmin", "choose", "clip", "compress", "cumprod", "cumsum", "dot"}
    | {"max", "mean", "min", "prod", "ptp", "round", "around", "std", "sum", "take", "trace", "var"}
    | {"concatenate", "outer", "amax", "amin", "fix", "isposinf", "isneginf", "nanmax", "nanmin"}
    | {"nansum", "nanprod", "nanmean", "nanstd", "nanvar", "nanmedian", "median", "percentile"}
    | {"quantile", "nanpercentile", "nanquantile", "matmul", "diagonal"}
)
# Packages that make objects of classes that are not named where they are called.
UNPICKLES = frozenset({"pickle", "_pickle", "joblib"})
# Functions that make models of classes that are registered.
DESERIALIZES = frozenset({"load_model", "from_config", "model_from_json", "deserialize"})
# Methods that change lists, dicts, sets, arrays and frames.
CHANGES = frozenset(
    {"append", "extend", "insert", "remove", "pop", "popitem", "clear", "sort", "reverse"}
    | {"update", "setdefault", "add", "discard", "difference_update", "intersection_update"}
    | {"symmetric_difference_update", "appendleft", "popleft", "extendleft", "rotate", "fill"}
    | {"resize", "put", "partition", "itemset", "setflags", "setfield", "byteswap", "subtract"}
    | {"__setitem__", "__delitem__", "__iadd__", "move_to_end", "set_flags", "isetitem"}
)
# Methods that keep what they are given, in what they are called on.
KEEPS = CHANGES | {"__init__", "set_params", "set_model"}
# Methods that change nothing, whatever has them.
PURE = frozenset(
    {"items", "keys", "values", "get", "copy", "index", "count", "get_weights", "get_config"}
    | {"count_params", "split", "get_n_splits", "tolist", "numpy", "get_params"}
)
# Functions of Python that change nothing, whatever they are given.
PURE_FUNCTIONS = frozenset(
    {"len", "print", "str", "repr", "isinstance", "issubclass", "id", "type", "hash", "sorted"}
    | {"min", "max", "sum", "abs", "round", "float", "int", "bool", "list", "tuple", "set", "dict"}
    | {"zip", "enumerate", "range", "reversed", "iter", "callable", "hasattr", "getattr", "any"}
    | {"all", "format", "frozenset", "super", "divmod", "pow", "isnan", "clone", "clone_model"}
    | {"deepcopy"}
)
SCALARS = frozenset(
    {
        "len",
        "str",
        "repr",
        "isinstance",
        "issubclass",
        "id",
        "hash",
        "float",
        "int",
        "bool",
        "print",
    }
    | {"range", "callable", "hasattr", "any", "all", "format", "abs", "round"}
)


# Those whose objects, when they are made, keep what they are given whole, and do not view it.
KEEPS_WHOLE = frozenset({"builtins", "collections", "itertools", "keras", "sklearn"})
# Methods whose results share nothing with anything.
FRESH = frozenset({"evaluate", "predict", "get_weights", "count_params", "tolist"})
# What is named like what configures a package, but is only read.
ONLY_READ = frozenset({"floatx", "epsilon", "list_physical_devices"})
_OF_OS = frozenset({"os", "posix", "nt", "posixpath", "ntpath", "genericpath"})


def uses_files(called: set[str], package: str) -> bool:
    """Returns whether a function of a package, called by these names, may read or write files."""
    if package in _OF_OS and called & PURE_OF_OS:
        return False
    return bool(package in _OF_OS | OF_FILES or called & FILES)


def package(thing: UserObject) -> str:
    """Returns the topmost package of a module, class or function."""
    if isinstance(thing, types.ModuleType):
        return thing.__name__.partition(".")[0]
    if isinstance(thing, types.FunctionType):  # `__module__` may be that of what it wraps
        return str(thing.__globals__.get("__name__", "")).partition(".")[0]
    module = getattr(thing, "__module__", None)
    if not isinstance(module, str):
        owner = getattr(thing, "__self__", None)
        module = "" if owner is None else type(owner).__module__
    return module.partition(".")[0]


def is_trusted(thing: UserObject) -> bool:
    """Returns whether a class, function or module is of a package in `TRUSTED`."""
    return package(thing) in TRUSTED


def bound_to(thing: UserObject) -> bool:
    """Returns whether a function is a method of an object, other than the global generators."""
    owner = getattr(thing, "__self__", None)
    generators = (getattr(each, "__self__", None) for each in (random.random, np.random.random))
    if owner is None or any(owner is each for each in generators):
        return False
    return not isinstance(owner, (types.ModuleType, type))
