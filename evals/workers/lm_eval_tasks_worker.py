"""Lists the tasks and groups of the lm-eval that is installed here, from its task files. Nothing is downloaded.

Runs in lm-eval's environment: standard library and lm-eval.
"""

import ast
import importlib.util
from importlib.metadata import version
from pathlib import Path

import qpack_worker
from lm_eval_tasks_job import TableAnswer, TableJob, TaskGroup, TaskKind

# Aggregations that are a mean over items.
_MEANS = ("mean", "nanmean")
# Metrics whose own aggregation, where a task file names none, is no mean over items.
_CORPUS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "bleu", "chrf", "ter", "f1", "mcc")


def table(_job, _out):
    """Every entry of lm-eval's own index."""
    qpack_worker.progress(0, 0, "reading lm-eval's task files")
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    manager = TaskManager()
    kinds, tasks, groups = [], {}, {}
    for name, entry in sorted(manager.task_index.items()):
        if entry.kind == Kind.GROUP:
            groups[name] = _group(entry.cfg)
            for inline in entry.cfg["task"] if isinstance(entry.cfg["task"], list) else ():
                _inline(inline, groups)
        elif entry.kind == Kind.TAG:
            groups.setdefault(name, TaskGroup(tuple(sorted(entry.tags)), ()))
        else:
            kind = _kind(entry.cfg or {}, code=entry.kind == Kind.PY_TASK)
            if kind not in kinds:
                kinds.append(kind)
            tasks[name] = kinds.index(kind)
    return TableAnswer(version("lm_eval"), tuple(kinds), tasks, groups)


def _inline(child, groups):
    """A group that is written inside another one."""
    if isinstance(child, dict) and "group" in child:
        groups.setdefault(child["group"], _group(child))
        for inner in child["task"] if isinstance(child.get("task"), list) else ():
            _inline(inner, groups)


def _group(config):
    children = config.get("task") or []
    children = children if isinstance(children, list) else [children]
    names = [child if isinstance(child, str) else child.get("group") or child.get("task") for child in children]
    aggregated = config.get("aggregate_metric_list") or []
    aggregated = aggregated if isinstance(aggregated, list) else [aggregated]
    return TaskGroup(
        tuple(name for name in names if isinstance(name, str)),
        tuple(dict.fromkeys(_named(each["metric"]) for each in aggregated if isinstance(each, dict))),
    )


def _named(metric):
    """A metric that is a function is called by the function's name."""
    return str(metric).rpartition(".")[2] if "/" in str(metric) else str(metric)


def _kind(config, code):
    listed = config.get("metric_list") or []
    named = [m for m in listed if isinstance(m, dict) and isinstance(m.get("metric"), str)]
    metrics = {_named(m["metric"]): _scored(m) for m in named}
    output = config.get("output_type")
    if not metrics and output == "multiple_choice":
        metrics = {"acc": "item", "acc_norm": "item"}
    examples = config.get("num_fewshot")
    return TaskKind(
        None if code else output,
        metrics,
        examples if isinstance(examples, int) else None,
        tuple(sorted(_lacking(config))),
    )


def _scored(metric):
    """How a metric scores one item, by its aggregation."""
    how = str(metric.get("aggregation"))
    if metric.get("higher_is_better") is False or _named(metric["metric"]) in _CORPUS:
        return "corpus"
    if how.rpartition(".")[2] == "agg_inst_level_acc":
        return "list"
    return "item" if how in (*_MEANS, "None") else "corpus"


def _lacking(config):
    """Packages that the functions of a task file import and that aren't installed. Read, not run."""
    found = set()
    for value in _texts(config):
        path, dot, _function = value.rpartition(".")
        if dot and path.startswith("/") and Path(f"{path}.py").is_file():
            found |= _imports(Path(f"{path}.py"), frozenset())
    return found


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)


_READ = {}


def _imports(path, above):
    """Packages that importing a file needs and that aren't there, through lm-eval's own modules."""
    if path in _READ or path in above:
        return _READ.get(path, set())
    found = set()
    for module in _needed(ast.parse(path.read_text(encoding="utf-8")).body):
        first = module.partition(".")[0]
        try:
            spec = importlib.util.find_spec(first)
        except (ImportError, ValueError):
            spec = None
        if spec is None and not (path.parent / f"{first}.py").exists():
            found.add(first)
        elif module.startswith("lm_eval.tasks."):
            own = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
            for file in (own.with_suffix(".py"), own / "__init__.py"):
                if file.is_file():
                    found |= _imports(file, above | {path})
    _READ[path] = found
    return found


def _needed(body):
    """Modules that these statements import when they run; an import whose failure is handled isn't needed."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("lm_eval.tasks")
            )
        elif isinstance(node, ast.Try):
            raises = any(isinstance(each, ast.Raise) for handler in node.handlers for each in ast.walk(handler))
            if raises:
                yield from _needed(node.body)
            yield from _needed(node.finalbody)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from _needed(node.body)


if __name__ == "__main__":
    qpack_worker.main(table, TableJob)
