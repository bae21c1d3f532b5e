"""The Python half of a worker: packages, scripts, styles, and how errors are told.

Runs inside the embedded interpreter only. Everything that happens for each event is done in
Rust; what happens once a script or once a batch is here.
"""

import ast
import atexit
import collections.abc
import faulthandler
import gc
import importlib.abc
import importlib.util
import inspect
import json  # noqa: F401  (used by the session; no script may be called so)
import linecache
import os
import site
import sys
import traceback
import types
import typing

# A name, not a path: frames of this file are left out of tracebacks.
OWN_FILE = "<millstream worker>"

STYLES = {
    ("polars", "DataFrame"): "polars",
    ("pyarrow", "RecordBatch"): "record_batch",
    ("pyarrow", "Table"): "table",
    ("pandas", "DataFrame"): "pandas",
}
ALLOWED = (
    "polars.DataFrame, pyarrow.RecordBatch, pyarrow.Table, pandas.DataFrame, list[dict] (rows) "
    "or dict (one event)"
)

# Names of the modules made by `load`, which may be loaded again.
_loaded = set()
# Names of the modules that are there only because the fork server imported them.
_preloaded = set()


class ContractError(Exception):
    """What a script returned is not what a script may return."""


class _Helpers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the helper modules of the script from the texts that came with it."""

    def __init__(self):
        self.modules = {}

    def replace(self, modules):
        for name in self.modules:
            sys.modules.pop(name, None)
        self.modules = {name: rest for name, *rest in modules}

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.modules:
            return None
        origin, _, is_package = self.modules[fullname]
        return importlib.util.spec_from_loader(fullname, self, origin=origin, is_package=is_package)

    def exec_module(self, module):
        origin, source, _ = self.modules[module.__name__]
        module.__file__ = origin
        exec(_compiled(source, origin), module.__dict__)


_helpers = _Helpers()


def _compiled(source, path):
    # Tracebacks must show the text that runs, which is not always what the file holds by now.
    # Without a modification time the entry is never checked against the file.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    try:
        return compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        # Python looks some lines up in the file.
        lines = source.splitlines(keepends=True)
        if error.filename == path and 0 < (error.lineno or 0) <= len(lines):
            error.text = lines[error.lineno - 1]
        raise


def prepare(site_dirs):
    """Puts the packages on the path.

    Given site folders replace the interpreter's own, as in a virtual environment.
    """
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        # Lines reach the log even when the process dies before the batch ends.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    if site_dirs:
        own = ("site-packages", "dist-packages")
        sys.path[:] = [p for p in sys.path if os.path.basename(p) not in own]
        for folder in site_dirs:
            site.addsitedir(folder)
    sys.meta_path.insert(0, _helpers)
    sys.argv = ["millstream-worker"]


# What packages for data import of the standard library, and take longer with than with themselves.
# None of these starts a thread.
PRELOADED = (
    "array",
    "calendar",
    "concurrent.futures.thread",
    "contextvars",
    "csv",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "email.message",
    "glob",
    "gzip",
    "hashlib",
    "importlib.metadata",
    "ipaddress",
    "locale",
    "logging",
    "mmap",
    "numbers",
    "pickle",
    "platform",
    "queue",
    "random",
    "secrets",
    "selectors",
    "shutil",
    "socket",
    "statistics",
    "subprocess",
    "sysconfig",
    "tempfile",
    "textwrap",
    "unicodedata",
    "urllib.parse",
    "uuid",
    "zipfile",
    "zoneinfo",
    # Of no library, but in nearly every environment, and like a part of it.
    "typing_extensions",
)


def preload():
    """Imports what workers will need; in the fork server."""
    before = set(sys.modules)
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            # Left out by whoever built this Python.
            pass
    _preloaded.update(set(sys.modules) - before)
    gc.collect()
    # The collector of a worker leaves these alone, so that their memory stays shared.
    gc.freeze()


def _forget_preloaded(name):
    """Lets a script or helper have the name of a module that no worker would have without us."""
    for module in list(_preloaded):
        if module == name or module.startswith(name + "."):
            _preloaded.discard(module)
            sys.modules.pop(module, None)


def fork():
    """Forks this process; 0 in the fork, its number otherwise."""
    flush()
    return os.fork()


def load(name, path, source, modules, context, columns):
    """Runs a script's text as the module `name`, then its `setup`.

    `modules` are its helpers: (name, path, text, whether it is a package). `columns` are those that
    the script will get.

    Returns (transform, style, whether it takes ctx, teardown or None, timeout in seconds or 0).
    """
    for own in (name, *(helper for helper, *_ in modules)):
        _forget_preloaded(own)
    if name in sys.modules and name not in _loaded:
        raise ImportError(
            f"a script cannot be called {name!r}: Python already has a module of that name"
        )
    _helpers.replace(modules)
    code = _compiled(source, path)
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    _loaded.add(name)
    exec(code, module.__dict__)

    transform = getattr(module, "transform", None)
    if transform is None:
        raise ImportError(f"{path} defines no function `transform`")
    if not callable(transform) or inspect.iscoroutinefunction(transform):
        raise ImportError(f"`transform` in {path} must be a plain function")
    parameters = _parameters(transform)
    if not parameters:
        raise ImportError(
            f"`transform` in {path} takes no parameter; it needs the batch or the event"
        )
    takes_ctx = len(parameters) > 1 and parameters[1].name == "ctx"
    needed = [
        p.name
        for p in parameters[2 if takes_ctx else 1 :]
        if p.default is p.empty and p.kind in _POSITIONAL
    ]
    if needed:
        raise ImportError(
            f"`transform` in {path} wants {', '.join(needed)}, which the worker cannot give"
        )
    style = _style(parameters[0], transform, source)

    timeout = _described(getattr(transform, "__millstream__", None), path, context, columns)

    setup = getattr(module, "setup", None)
    if setup is not None:
        setup(context)
    return transform, style, takes_ctx, getattr(module, "teardown", None), timeout


def _described(info, path, context, columns):
    """Does what the decorator `millstream.transform` says; its timeout, 0 without one."""
    if info is None:
        return 0.0
    missing = [column for column in info.inputs or () if column not in columns]
    if missing:
        raise ImportError(
            f"`transform` in {path} reads {', '.join(missing)}, which its stream does not declare; it has "
            f"{', '.join(columns)}"
        )
    for name, value in info.params.items():
        context.params.setdefault(name, value)
    return float(info.timeout or 0.0)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(function):
    options = {}
    if sys.version_info >= (3, 14):
        # There annotations are evaluated on demand and may name what is not installed.
        import annotationlib

        options["annotation_format"] = annotationlib.Format.FORWARDREF
    return list(inspect.signature(function, **options).parameters.values())


def _style(parameter, function, source):
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return "polars" if importlib.util.find_spec("polars") else "rows"
    annotation = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(annotation, str):
        text = annotation
        try:
            annotation = eval(text, inspect.unwrap(function).__globals__)
        except Exception:
            # Imported for type checkers only, or not installed: go by the names in the text.
            style = _style_of_text(text, source)
        else:
            style = _style_of_type(annotation)
    else:
        style = _style_of_type(annotation)
    if style is None:
        raise ImportError(
            f"the parameter {parameter.name!r} of `transform` is annotated {annotation!r}; it can be {ALLOWED}"
        )
    return style


def _style_of_type(annotation):
    if _is_record(annotation):
        return "event"
    origin = typing.get_origin(annotation) or annotation
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        arguments = typing.get_args(annotation)
        return "rows" if not arguments or _is_record(arguments[0]) else None
    # By name, so that no package is imported for the comparison.
    package = getattr(annotation, "__module__", "").partition(".")[0]
    return STYLES.get((package, getattr(annotation, "__qualname__", "")))


def _is_record(annotation):
    origin = typing.get_origin(annotation) or annotation
    mappings = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
    return origin in mappings or typing.is_typeddict(annotation)


def _style_of_text(text, source):
    for prefix, style in (
        ("list[", "rows"),
        ("List[", "rows"),
        ("dict[", "event"),
        ("Dict[", "event"),
    ):
        if text.strip().startswith(prefix):
            return style
    imported = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for item in node.names:
                imported[item.asname or item.name.partition(".")[0]] = item.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for item in node.names:
                imported[item.asname or item.name] = f"{node.module}.{item.name}"
    head, _, rest = text.strip().partition(".")
    full = imported.get(head, head) + ("." + rest if rest else "")
    package, _, name = full.partition(".")
    return STYLES.get((package, name.rpartition(".")[2]))


def converter(style):
    """The function that makes a script's argument from an object with Arrow capsules."""
    if style == "polars":
        import polars

        return polars.DataFrame
    if style == "record_batch":
        import pyarrow

        return pyarrow.record_batch
    if style == "table":
        import pyarrow

        return pyarrow.table
    if style == "pandas":
        import pandas  # noqa: F401  (fails here, at load, when it is missing)
        import pyarrow

        return lambda batch: pyarrow.table(batch).to_pandas()
    return None


def to_arrow(result):
    """The object with Arrow capsules behind what a script returned."""
    if type(result).__module__.partition(".")[0] == "pandas" and hasattr(result, "columns"):
        import pyarrow

        # Its own export would carry the index along as one more column.
        return pyarrow.Table.from_pandas(result, preserve_index=False)
    polars = sys.modules.get("polars")
    if polars is not None:
        if isinstance(result, polars.LazyFrame):
            result = result.collect()
        if isinstance(result, polars.DataFrame):
            return _without_null_type(polars, result)
    if hasattr(result, "__arrow_c_stream__") or hasattr(result, "__arrow_c_array__"):
        return result
    if result is None:
        raise ContractError(
            "`transform` returned None; a batch script returns a table or a list (is a `return` missing?)"
        )
    raise ContractError(
        f"`transform` returned {type(result).__module__}.{type(result).__qualname__}; it can return anything with "
        "__arrow_c_stream__ (polars, pyarrow, pandas) or a list of dicts"
    )


def _without_null_type(polars, frame):
    """Gives columns of polars' type Null a real one: Arrow libraries differ on how to pass it."""
    types = {
        "value": polars.Float64,
        "event_timestamp": polars.Datetime("us", "UTC"),
        "created_at": polars.Datetime("us", "UTC"),
        "_row": polars.UInt32,
    }
    untyped = [name for name, kind in frame.schema.items() if kind == polars.Null]
    return (
        frame.cast({name: types.get(name, polars.String) for name in untyped}) if untyped else frame
    )


def describe(error):
    """(class, text, traceback) of an exception, without this file's frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == OWN_FILE:
        trace = trace.tb_next
    kind = type(error).__qualname__
    try:
        message = str(error)
    except Exception:
        message = "(its text cannot be shown)"
    return kind, message, "".join(traceback.format_exception(type(error), error, trace))


def flush():
    """Sends what was printed on its way. A script may have closed or replaced the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def finish(teardown, context):
    """Lets a script end properly."""
    _guarded(teardown, context)


def leave():
    """Runs what scripts and packages registered for the end of the process."""
    _guarded(atexit._run_exitfuncs)
    flush()


def _guarded(function, *arguments):
    try:
        if function is not None:
            function(*arguments)
    except BaseException as error:
        # Nobody waits for an answer any more, and the streams may be closed.
        try:
            sys.stderr.write(describe(error)[2])
        except Exception:
            pass
