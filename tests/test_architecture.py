"""The rules of the architecture, read from the source: what may import what, how large a part may be, who has state."""

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Pure modules read no clock, open no socket, start no thread and never log.
PURE_MODULES = (
    "conf/converters.py",
    "conf/location.py",
    "conf/plan.py",
    "conf/rules.py",
    "conf/streams.py",
    "dashboard/charts.py",
    "dashboard/health.py",
    "dashboard/html.py",
    "dashboard/market.py",
    "dashboard/model.py",
    "ops/rows.py",
    "relay/backoff.py",
    "relay/batch.py",
    "relay/bybit/frames.py",
    "relay/bybit/health.py",
    "relay/bybit/instruments.py",
    "relay/bybit/pacer.py",
    "relay/bybit/rejected.py",
    "relay/bybit/renewal.py",
    "relay/bybit/repeats.py",
    "relay/bybit/requests.py",
    "relay/bybit/sequence.py",
    "relay/bybit/silence.py",
    "relay/bybit/subscription.py",
    "relay/channels.py",
    "relay/errors.py",
    "relay/events.py",
    "relay/kinds.py",
    "relay/log.py",
    "relay/packing.py",
    "relay/redis/address.py",
    "relay/redis/backlog.py",
    "relay/redis/cluster.py",
    "relay/redis/durable.py",
    "relay/redis/lines.py",
    "relay/redis/notices.py",
    "relay/redis/pending.py",
    "relay/redis/pipeline.py",
    "relay/redis/poison.py",
    "relay/redis/progress.py",
    "relay/redis/queries.py",
    "relay/redis/registry.py",
    "relay/redis/resp.py",
    "relay/redis/retained.py",
    "relay/redis/role.py",
    "relay/redis/trust.py",
    "relay/stats.py",
    "sandbox/bybit/book.py",
    "sandbox/bybit/catalogue.py",
    "sandbox/bybit/dialect.py",
    "sandbox/bybit/view.py",
    "sandbox/judge.py",
    "sandbox/proof.py",
)
IMPURE = re.compile(
    r"(asyncio|datetime|logging|pybit|redis|select|selectors|socket|ssl|subprocess|threading|time|websocket)(\..*)?"
)

# An import goes from a higher layer to a lower one, or stays within a folder.
PURE, IO_MODULES, CALLBACKS, OPS, MAIN, TOOLS = range(6)
LAYERS = {
    "relay": IO_MODULES,
    "conf": IO_MODULES,
    "callbacks": CALLBACKS,
    "ops": OPS,
    "main.py": MAIN,
    "dashboard": TOOLS,
    "sandbox": TOOLS,
    "bench": TOOLS,
    "tests": TOOLS,
    "examples": TOOLS,
}

# Tools that use others: the page keeps books in sync as every consumer may, and its demo runs what make demo runs.
USES = {("dashboard", "examples"), ("dashboard", "sandbox")}

MAX_FILE, MAX_FUNCTION, MAX_ATTRIBUTES = 300, 50, 15  # lines, lines, names assigned on self

# Calls that make something mutable; the second kind is never a constant, as even reading one may change it.
CONTAINER = re.compile("list|dict|set|bytearray|OrderedDict")
STATEFUL = re.compile(
    "defaultdict|deque|Counter|Event|R?Lock|Condition|(Bounded)?Semaphore|Barrier|local|(\\w+)?Queue|count|cycle"
)
LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTATOR = re.compile(
    "add|append(left)?|clear|discard|extend|insert|pop(item|left)?|remove|reverse|setdefault|sort|update"
)
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}  # the calls that write to the log
USERS = {"STREAMS"}  # the user's list: the program reads it, the user appends to it

PRODUCT = sorted(
    path.relative_to(ROOT).as_posix()
    for path in chain(
        ROOT.glob("*.py"),
        *(ROOT.glob(f"{folder}/**/*.py") for folder in ("callbacks", "conf", "dashboard", "relay", "ops", "sandbox")),
    )
)


def tree_of(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(tree, path="main.py"):
    """The full names of what is imported anywhere in the file, also in functions: "threading.Lock", "socket"."""
    package = path.removesuffix(".py").split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: -node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def file_of(name):
    """The file of this repository that holds "relay.kinds.KINDS"; None if it is somebody else's."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        base = "/".join(parts[:end])
        for path in (f"{base}.py", f"{base}/__init__.py"):
            if (ROOT / path).exists():
                return path
    return None


def layer(path):
    return PURE if path in PURE_MODULES else LAYERS[path.split("/")[0]]


def may_import(path, other):
    top, other_top = path.split("/")[0], other.split("/")[0]
    if LAYERS[other_top] == TOOLS:
        return top == other_top or (top, other_top) in USES
    same = layer(path) == layer(other)
    return layer(path) > layer(other) or (same and (top == other_top or layer(path) == PURE))


def impurities(tree):
    return {f"imports {name}" for name in imports(tree) if IMPURE.fullmatch(name) and name != "threading.Lock"}


def attributes(node):
    """The names assigned on self in the methods of a class."""
    methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        target.attr
        for target in chain.from_iterable(map(ast.walk, methods))
        if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
        if isinstance(target.value, ast.Name) and target.value.id == "self"
    }


def too_large(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and len(attributes(node)) > MAX_ATTRIBUTES:
            yield f"class {node.name} has too many attributes"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION:
            yield f"function {node.name} is too long"


def module_level(node):
    """The statements that run at import: also those in an if, a with or a try, not those in functions and classes."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.stmt) and not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield inner
            yield from module_level(inner)
        elif isinstance(inner, ast.ExceptHandler):
            yield from module_level(inner)


def called(node):
    """The last part of the name of what is called: "deque" for collections.deque()."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def mutated(tree):
    """The names in capitals that are changed: NAME.append(...), NAME[...] = ..., del NAME[...], NAME += ..."""
    for node in ast.walk(tree):
        changed = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and MUTATOR.fullmatch(node.func.attr):
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed = node.value
        elif isinstance(node, ast.AugAssign):
            changed = node.target
        name = getattr(changed, "attr", getattr(changed, "id", ""))
        if name.isupper():
            yield name


def mutable_state(tree, not_constant=()):
    """not_constant: names in capitals that are changed somewhere."""
    for node in module_level(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            name = target.id if isinstance(target, ast.Name) else ast.unparse(target)
            container = isinstance(node.value, LITERALS) or CONTAINER.fullmatch(called(node.value))
            if STATEFUL.fullmatch(called(node.value)) or (container and (not name.isupper() or name in not_constant)):
                yield f"mutable state `{name}`"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from (f"mutable state `{name}`" for name in node.names)


def complaints(check):
    """What `check(tree)` finds in the product."""
    return {f"{path}: {found}" for path in PRODUCT for found in check(tree_of(path))}


@pytest.mark.parametrize("path", PURE_MODULES)
def test_a_pure_module_reaches_for_nothing_outside(path):
    assert impurities(tree_of(path)) == set()


@pytest.mark.parametrize("path", PRODUCT)
def test_imports_run_downwards(path):
    """main, ops, callbacks, conf and the I/O modules of relay, pure modules; the product knows nothing of its tools."""
    ours = {other for name in imports(tree_of(path), path) if (other := file_of(name))}
    assert {other for other in ours if not may_import(path, other)} == set()


def test_no_class_or_function_is_too_large():
    assert complaints(too_large) == set()


def test_no_file_is_too_long():
    long = {path for path in PRODUCT if len((ROOT / path).read_text(encoding="utf-8").splitlines()) > MAX_FILE}
    assert long == set()


def test_no_module_holds_mutable_state():
    not_constant = {name for path in PRODUCT for name in mutated(tree_of(path))} - USERS
    assert complaints(lambda tree: mutable_state(tree, not_constant)) == set()


def unnamed_arguments(tree):
    """The calls of log.* whose arguments are not named: anything but a template and one dict, or a template that has
    other placeholders than %(name)s, or names what the dict does not have.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level), args=args) if level in LEVELS:
                template, *fields = args[level == "log" :]
                names = placeholders(template)
                if names is None or len(fields) > 1 or (names and not fields):
                    yield f"unnamed arguments of {ast.unparse(node)}"
                elif fields and isinstance(fields[0], ast.Dict):
                    given = {key.value for key in fields[0].keys if isinstance(key, ast.Constant)}
                    if not given or not given >= names:
                        yield f"missing names of {ast.unparse(node)}"
                elif fields and not isinstance(fields[0], ast.Name | ast.Attribute | ast.BinOp):
                    yield f"no dict in {ast.unparse(node)}"


def placeholders(template):
    """The names in a template; None: it has something else than %(name)s in it, or is put together."""
    if isinstance(template, ast.Name):
        return set()
    if not isinstance(template, ast.Constant):
        return None
    rest = re.sub(r"%\((\w+)\)[.\d]*[a-z]|%%", "", template.value)
    return None if "%" in rest else set(re.findall(r"%\((\w+)\)", template.value))


def test_each_line_of_the_log_names_its_arguments():
    """So that LOG_FORMAT=json has fields, and an event that does not change with them."""
    assert {found for found in complaints(unnamed_arguments) if not found.startswith("sandbox/")} == set()


# The rules themselves.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import socket", {"imports socket"}),
        ("def f():\n    from time import monotonic", {"imports time.monotonic"}),
        ("import threading", {"imports threading"}),
        ("from threading import Lock, Thread", {"imports threading.Thread"}),
        ("import json, math\nfrom relay.kinds import KINDS", set()),
    ],
)
def test_what_is_impure(source, found):
    assert impurities(ast.parse(source)) == found


@pytest.mark.parametrize(
    ("path", "other", "allowed"),
    [
        ("main.py", "relay/redis/publisher.py", True),
        ("callbacks/trades.py", "callbacks/__init__.py", True),
        ("conf/settings.py", "relay/kinds.py", True),
        ("conf/streams.py", "relay/kinds.py", True),
        ("relay/bybit/connection.py", "relay/redis/publisher.py", True),
        ("sandbox/redis.py", "conf/settings.py", True),
        ("conf/streams.py", "conf/settings.py", False),
        ("relay/kinds.py", "relay/bybit/connection.py", False),
        ("relay/bybit/connection.py", "conf/settings.py", False),
        ("conf/settings.py", "relay/bybit/connection.py", False),
        ("callbacks/trades.py", "main.py", False),
        ("main.py", "sandbox/bybit/server.py", False),
        ("relay/bybit/connection.py", "sandbox/bybit/dialect.py", False),
        ("sandbox/bybit/server.py", "sandbox/bybit/dialect.py", True),
        ("sandbox/bybit/server.py", "tests/conftest.py", False),
        ("dashboard/__main__.py", "examples/synced.py", True),
        ("sandbox/demo.py", "dashboard/__main__.py", False),
    ],
)
def test_what_may_import_what(path, other, allowed):
    assert may_import(path, other) is allowed


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("seen = set()", ["seen"]),
        ("seen: dict[str, int] = {}", ["seen"]),
        ("stop = threading.Event()", ["stop"]),
        ("STOP = Event()", ["STOP"]),
        ("if True:\n    live = []", ["live"]),
        ("def f():\n    global last\n    last = 1", ["last"]),
        ("NAMES = ['a']", []),
        ("NAMES = []\nNAMES.append(1)", ["NAMES"]),
        ("NAMES = {}\ndef f():\n    NAMES[1] = 2", ["NAMES"]),
        ("NAMES = {}\ndef f():\n    return NAMES[1]", []),
        ("def f():\n    seen = set()", []),
        ("NAMES = ('a', 'b')\nlog = logging.getLogger(__name__)", []),
    ],
)
def test_what_is_mutable_state(source, names):
    tree = ast.parse(source)
    assert list(mutable_state(tree, set(mutated(tree)))) == [f"mutable state `{name}`" for name in names]


def test_how_attributes_are_counted():
    source = """
class C:
    shared = 1
    def f(self):
        self.a, self.b = self.c = 1, 2
        self.a += self.read
        self.d: int = 3
        self.e.f = 4
        for self.g in []: pass
"""
    assert attributes(ast.parse(source).body[0]) == {"a", "b", "c", "d", "g"}


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("log.info('All is well')", True),
        ("log.info('Lost %(reason)s', {'reason': reason})", True),
        ("log.info('Lost %(reason)s', {'reason': reason, 'kind': kind})", True),
        ("log.log(level, '%(seconds).1f s, 100 %%', {'seconds': seconds})", True),
        ("log.info('Lost %(reason)s', fields)", True),
        ("log.info('Lost %s', reason)", False),
        ("log.info('Lost %s', {'reason': reason})", False),
        ("log.info('Lost %(reason)s', {'why': reason})", False),
        ("log.info('Lost %(reason)s')", False),
        ("log.info('All is well', {})", False),
        ("log.info(f'Lost {reason}')", False),
        ("log.info('Lost %(reason)s', reason())", False),
        ("log.log(level, '%s', reason)", False),
        ("log.exception('%s and %s', one, two)", False),
    ],
)
def test_what_names_its_arguments(source, allowed):
    assert (list(unnamed_arguments(ast.parse(source))) == []) is allowed
