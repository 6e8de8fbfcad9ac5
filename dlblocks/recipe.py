"""A recipe: the whole description of a run as plain values, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlblocks.errors import UserError, did_you_mean
from dlblocks.factory import FOLLOWS
from dlblocks.losses.terms import contract
from dlblocks.records import Block, Param
from dlblocks.registry import REGISTRY, spell_out
from dlblocks.rules import spell_out_with_rules
from dlblocks.tasks import HEADS, MAIN, METRICS, TASKS, Task

REGIMES = ("gd", "sgd", "minibatch")
PRECISIONS = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")

_HEADS = tuple(dict.fromkeys(head for heads in HEADS.values() for head in heads))

RUN = (
    Param("task", "auto", "str", "what is learnt", choices=("auto", *TASKS)),
    Param("head", "auto", "str", "output activation", choices=("auto", *_HEADS)),
    Param("regime", "minibatch", "str", "instances for each update", choices=REGIMES),
    Param("seed", 0, "int", "of weights, order, dropout and split", "[0, 9223372036854775807]"),
    Param("name", "run", "str", "of the run folder"),
    Param("root", "runs", "str", "folder of the run folders"),
    Param("ckpt_path", None, "str", "checkpoint to go on from"),
    Param(
        "diagnose",
        "warn",
        "str",
        "whether to say before training that it will fail, or to refuse it",
        choices=("warn", "strict", "off"),
    ),
    Param("compile", False, "bool", "train with the net compiled by torch"),
    Param("checkpoint_activations", False, "bool", "keep no activations inside blocks; compute them again"),
    Param("debug", False, "bool", "show tracebacks"),
)
DATA = (
    Param("batch_size", 32, "any", "instances in a batch, of all processes together"),
    Param("max_batch_size", None, "int", "the largest size that batch_size=auto may take", "[1, inf)"),
    Param(
        "effective_batch_size",
        None,
        "int",
        "instances for each update, made up of batches that are accumulated",
        "[1, inf)",
    ),
    Param("eval_batch_size", None, "int", "instances at once in validation and test", "[1, inf)"),
    Param("val_fraction", 0.2, "float", "share of the instances for validation", "(0, 1)"),
    Param("test_fraction", 0.2, "float", "share of the instances for the test", "(0, 1)"),
    Param("scale", "standard", "str", "scaling of the inputs", choices=("standard", "minmax", "none")),
    Param("scale_target", True, "bool", "standardise regression targets inside the loss"),
    Param("drop_last", False, "bool", "leave out the last batch where it is smaller"),
)
TRAINER = (
    Param("accelerator", "auto", "str", "device", choices=("auto", "cpu", "gpu", "cuda", "mps", "tpu")),
    Param("precision", "32-true", "str", "number format", choices=PRECISIONS),
    Param(
        "max_epochs", 20, "int", "passes over the training data; -1 for no end", "[-1, inf)", optional=True
    ),
    Param("max_steps", -1, "int", "updates; -1 for no limit", "[-1, inf)"),
    Param("gradient_clip_val", None, "float", "largest norm of the gradient", "(0, inf)", optional=True),
    Param("accumulate_grad_batches", 1, "int", "batches for each update", "[1, inf)"),
    Param("log_every_n_steps", 50, "int", "updates between two rows of the log", "[1, inf)"),
    Param("check_val_every_n_epoch", 1, "int", "epochs between two validations", "[1, inf)"),
)

LR_FINDER = (
    Param(
        "method",
        "race",
        "str",
        "how optimizer.lr=auto is found: by a race, or by what a range test suggests",
        choices=("race", "valley", "steepest", "minimum"),
    ),
    Param("min_lr", 1e-5, "float", "the lowest rate tried", "(0, inf)"),
    Param("max_lr", 10.0, "float", "the highest rate tried", "(0, inf)"),
    Param("steps", 40, "int", "of the last rates in the race", "[1, inf)"),
)

# Beside the parameters of an optimizer.
_REFERENCE = Param(
    "lr_reference_batch_size",
    None,
    "int",
    "the batch size that lr was set for; with another one lr is scaled",
    "[1, inf)",
)

# Config key -> kind of block.
BLOCKS = {
    "model": "model",
    "activation": "activation",
    "init": "initializer",
    "bias_init": "initializer",
    "loss": "loss",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
}
KEYS = (*(p.name for p in RUN), *BLOCKS, "data", "trainer", "callbacks", "logger", "lr_finder", "sweep")
# Keys that a recipe may leave out.
_OPTIONAL = ("ckpt_path", "diagnose", "compile", "checkpoint_activations", "lr_finder", "sweep")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Blocks are `{name: ..., params}` mappings, or `auto` where they follow from others.

    `lr_finder` says how the learning rate is found; it is None where the recipe gives one. `batches` has the keys
    `auto`, `max_size`, `effective` and `lr_reference`.
    """

    run: Mapping[str, Any]
    blocks: Mapping[str, Any]
    dataset: Mapping[str, Any]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    callbacks: Mapping[str, Any]
    logger: Mapping[str, Any]
    lr_finder: Mapping[str, Any] | None
    batches: Mapping[str, Any]
    plain: Mapping[str, Any]


def check(recipe: Mapping[str, Any]) -> Recipe:
    """Check every key and value of a recipe. Needs no torch.

    Raises:
        UserError: the first thing that is wrong, its config key, and what would be right.
    """
    _refuse_unknown(recipe, KEYS)
    if missing := [key for key in KEYS if key not in recipe and key not in _OPTIONAL]:
        raise UserError(
            f"the recipe lacks {', '.join(missing)}. `dlblocks.compose(...)` makes a whole one from overrides."
        )
    run = {p.name: p.check(recipe.get(p.name, p.default), p.name) for p in RUN}
    if run["compile"] and run["checkpoint_activations"]:
        raise UserError("compile=true: does not go with checkpoint_activations=true; leave out one.")
    optimizer, reference = _without_reference(recipe["optimizer"])
    optimizer, found = _without_auto(optimizer)
    specs = {**recipe, "optimizer": optimizer}
    blocks = {key: _block(kind, key, specs[key]) for key, kind in BLOCKS.items()}
    dataset, data = _data(recipe["data"], run["regime"])
    trainer = _trainer(recipe["trainer"])
    batches = _batches(data, trainer, reference, found)
    _check_single(run["regime"], trainer, batches["effective"])
    if batches["auto"] and run["ckpt_path"] is not None:
        raise UserError(
            "data.batch_size=auto: a run that goes on from a checkpoint keeps its size; set data.batch_size to the"
            " one in its result.json."
        )
    if trainer.get("strategy") == "fsdp2":
        _check_divided(batches["auto"], found)
    check_panels(recipe)
    return Recipe(
        run=run,
        blocks=blocks,
        dataset=dataset,
        data=data,
        trainer=trainer,
        callbacks=_group(recipe["callbacks"], "callbacks"),
        logger=_group(recipe["logger"], "logger"),
        lr_finder=_lr_finder(recipe.get("lr_finder"), found),
        batches=batches,
        plain=recipe,
    )


def _block(kind: str, key: str, spec: Any) -> Any:
    if key in FOLLOWS and (
        spec == FOLLOWS[key] or (isinstance(spec, Mapping) and spec.get("name") == FOLLOWS[key])
    ):
        if isinstance(spec, Mapping) and len(spec) > 1:
            extra = next(name for name in spec if name != "name")
            raise UserError(
                f"{key}.{extra}: {key}={FOLLOWS[key]} has no parameters; name a block to set one."
            )
        return FOLLOWS[key]
    if key == "model" and isinstance(spec, Mapping) and "library" in spec:
        spec = _of_library(spec)
    if key == "loss":
        contract(spec)  # the terms of a sum, which its parameters alone can't tell
    return spell_out_with_rules(spec, key) if key == "init" else spell_out(kind, spec, key)


def _without_reference(spec: Any) -> tuple[Any, int | None]:
    """An optimizer without `lr_reference_batch_size`, and that."""
    if not isinstance(spec, Mapping) or _REFERENCE.name not in spec:
        return spec, None
    reference = _REFERENCE.check(spec[_REFERENCE.name], f"optimizer.{_REFERENCE.name}")
    return {key: value for key, value in spec.items() if key != _REFERENCE.name}, reference


def _batches(
    data: dict[str, Any], trainer: dict[str, Any], reference: int | None, found: bool
) -> dict[str, Any]:
    """What is said of batch sizes, taken out of the data's settings; with an accumulation that follows from it."""
    size, largest, effective = (
        data["batch_size"],
        data.pop("max_batch_size"),
        data.pop("effective_batch_size"),
    )
    auto = size == "auto"
    if auto:
        data["batch_size"] = "full"  # until one is found
    elif largest is not None:
        raise UserError(
            f"data.max_batch_size={largest}: has no effect, since the size is given; set data.batch_size=auto."
        )
    if reference is not None and found:
        raise UserError(
            f"optimizer.{_REFERENCE.name}={reference}: has no effect, since optimizer.lr=auto finds the rate at the"
            " size that is trained with."
        )
    if effective is not None:
        if trainer.get("accumulate_grad_batches", 1) != 1:
            raise UserError(
                f"data.effective_batch_size={effective}: says how many batches are accumulated; leave out"
                f" trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}."
            )
        if isinstance(size, int) and effective % size:
            raise UserError(
                f"data.effective_batch_size={effective}: must be a multiple of data.batch_size={size}; or set"
                " data.batch_size=auto."
            )
        if isinstance(size, int):
            trainer["accumulate_grad_batches"] = effective // size
    return {"auto": auto, "max_size": largest, "effective": effective, "lr_reference": reference}


def _check_single(regime: str, trainer: Mapping[str, Any], effective: int | None) -> None:
    """Refuse to accumulate where each instance is to have an update."""
    accumulate = trainer.get("accumulate_grad_batches", 1)
    if regime == "sgd" and accumulate != 1:
        key = "trainer.accumulate_grad_batches" if effective is None else "data.effective_batch_size"
        raise UserError(
            f"{key}={accumulate}: regime=sgd takes one instance for each update. Leave out {key}, or set"
            " regime=minibatch."
        )


def _check_divided(size: bool, rate: bool) -> None:
    """Refuse to search where the net is divided: what is found is found by training copies of it."""
    for key, asked in (("data.batch_size", size), ("optimizer.lr", rate)):
        if asked:
            raise UserError(
                f"{key}=auto: is found by training copies of the net, which trainer.strategy=fsdp2 divides. Find it"
                f" with trainer=ddp (on the CPU trainer=ddp_cpu) or on one device, and give {key}=<what the run's"
                " result.json has under chosen>."
            )


def _without_auto(spec: Any) -> tuple[Any, bool]:
    """An optimizer without `lr=auto`, and whether that was there."""
    if not isinstance(spec, Mapping) or spec.get("lr") != "auto":
        return spec, False
    block = REGISTRY.get("optimizer", str(spec.get("name")), "optimizer.name")
    if all(param.name != "lr" for param in block.params):
        return spec, False  # refused as the unknown parameter that it is
    return {key: value for key, value in spec.items() if key != "lr"}, True


def _lr_finder(given: Any, found: bool) -> dict[str, Any] | None:
    settings = dict(_group(given, "lr_finder"))
    known = {p.name: p for p in LR_FINDER}
    _refuse_unknown(settings, tuple(known), "lr_finder.")
    checked = {name: p.check(settings.get(name, p.default), f"lr_finder.{name}") for name, p in known.items()}
    if checked["min_lr"] >= checked["max_lr"]:
        raise UserError(
            f"lr_finder.min_lr={checked['min_lr']:g}: must be below lr_finder.max_lr={checked['max_lr']:g}."
        )
    steps = known["steps"].default
    if checked["method"] != "race" and checked["steps"] != steps:
        raise UserError(
            f"lr_finder.steps={checked['steps']}: has no effect with lr_finder.method={checked['method']}; take"
            f" method=race, or leave it at {steps}."
        )
    if found:
        return checked
    for name, param in known.items():
        if checked[name] != param.default:
            raise UserError(
                f"lr_finder.{name}={checked[name]}: has no effect, since the learning rate is given; set"
                " optimizer.lr=auto."
            )
    return None


def check_panels(recipe: Mapping[str, Any]) -> None:
    """Refuse a picture of a sweep that can't be drawn, by a recipe of one of its runs.

    Raises:
        UserError: `sweep.panels` is no list of panels, or names a metric that the task does not have.
    """
    sweep = _group(recipe.get("sweep"), "sweep")
    _refuse_unknown(sweep, ("panels",), "sweep.")
    panels = sweep.get("panels") or []
    if not isinstance(panels, (list, tuple)) or any(
        not isinstance(panel, Mapping)
        or not {"x", "y"} <= set(panel) <= {"x", "y", "color", "where"}
        or not all(isinstance(value, str) for key, value in panel.items() if key != "where")
        or not isinstance(panel.get("where", {}), Mapping)
        for panel in panels
    ):
        raise UserError(
            f"sweep.panels={panels}: must be a list of panels such as {{x: epoch, y: val/metric}} or"
            " {x: optimizer.lr, y: test/accuracy}, or {x: init, y: activation, color: val/metric}, with where:"
            " {model.depth: 20} for a part of the runs."
        )
    task = _task_of(recipe)
    if task is None:
        return
    names = (MAIN, *METRICS[task], "loss")
    others = ("seconds", "steps", "diagnosis")
    legal = (*(f"{split}/{name}" for split in ("val", "test", "train") for name in names), *others)
    for panel in panels:
        shown = panel.get("color", panel["y"])
        if shown not in legal:
            raise UserError(
                f"sweep.panels: {shown} is no metric of the task {task}.{did_you_mean(shown, legal)} There are"
                f" {', '.join(names)} of val, test and train, as in val/{MAIN}, the main one of any task, and"
                f" {', '.join(others)}."
            )


def _task_of(recipe: Mapping[str, Any]) -> str | None:
    """The key of the task, as far as the recipe tells: a data set of somebody else may not say what it is."""
    name, data = recipe.get("task", "auto"), recipe.get("data")
    of_data = data.get("name") if isinstance(data, Mapping) else None
    if name == "auto" and isinstance(of_data, str) and REGISTRY.has("dataset", of_data):
        name = REGISTRY.get("dataset", of_data).tags.get("task")
    if name not in TASKS:
        return None
    head = recipe.get("head", "auto")
    return Task(name, HEADS[name][0] if head == "auto" else head, 2).key


def _of_library(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The block that makes the models of a library: there, `model.name` is the name in the library."""
    block = REGISTRY.get("model", str(spec["library"]), "model.library")
    if not block.tags.get("predefined"):
        raise UserError(f"model.library={block.name}: is a model of its own; set model={block.name} instead.")
    rest = {key: value for key, value in spec.items() if key not in ("library", "name")}
    return {"name": block.name, "model": spec.get("name"), **rest}


def _data(data: Any, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
    given = dict(_group(data, "data"))
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise UserError("data.name: missing; it names the data set.")
    block: Block = REGISTRY.get("dataset", name, "data.name")
    of_set = {p.name for p in block.params}
    of_loader = {p.name: p for p in DATA}
    _refuse_unknown(given, (*of_set, *of_loader), "data.")
    dataset = {"name": block.name, **block.check({k: v for k, v in given.items() if k in of_set}, "data")}
    loading = {key: p.check(given.get(key, p.default), f"data.{key}") for key, p in of_loader.items()}
    loading["batch_size"] = _batch_size(loading["batch_size"], regime)
    if loading["val_fraction"] + loading["test_fraction"] >= 1:
        raise UserError(
            f"data.val_fraction={loading['val_fraction']} and data.test_fraction={loading['test_fraction']}"
            " leave nothing to train on; their sum must be below 1."
        )
    return dataset, loading


def _batch_size(size: Any, regime: str) -> int | str:
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    if size not in ("full", "auto") and not whole:
        raise UserError(
            f"data.batch_size={size}: must be a whole number of at least 1 (default 32), full for the whole"
            " training set, or auto to find one."
        )
    expected = {"gd": "full", "sgd": 1}.get(regime, size)
    if size != expected:
        raise UserError(
            f"data.batch_size={size}: regime={regime} takes"
            f" {'the whole training set' if regime == 'gd' else 'one instance'} for each update."
            " Leave out data.batch_size, or set regime=minibatch."
        )
    return size  # type: ignore[no-any-return]


def _trainer(trainer: Any) -> dict[str, Any]:
    checked = dict(_group(trainer, "trainer"))
    for param in TRAINER:
        if param.name in checked:
            checked[param.name] = param.check(checked[param.name], f"trainer.{param.name}")
    if checked.get("max_epochs", -1) == 0 or checked.get("max_steps", -1) == 0:
        raise UserError("trainer.max_epochs and trainer.max_steps: 0 would train nothing.")
    if checked.get("max_epochs") in (None, -1) and checked.get("max_steps", -1) == -1:
        raise UserError("trainer.max_epochs=-1: the run would have no end; set trainer.max_steps too.")
    return checked


def _refuse_unknown(given: Mapping[str, Any], legal: Sequence[str], prefix: str = "") -> None:
    for key in given:
        if key not in legal:
            raise UserError(
                f"{prefix}{key}: unknown key.{did_you_mean(key, legal)} Keys: {', '.join(legal)}."
            )


def _group(value: Any, key: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key}={value}: must be a mapping, as the files in conf/{key}/ are.")
    return value
