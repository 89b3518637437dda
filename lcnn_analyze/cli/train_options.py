"""The options of ``lcnn train``: one table for the command line, the configuration file and the saved settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from lcnn_core import ConfigError

NETWORK, DATA, START, RUN = "Network", "Data", "Start", "Run"
REGULAR, MACHINE, LOOKUPS, BUDGET, FILES = "Regularisation", "Machine", "Lookup layers", "Budget", "Run folder"


@dataclass(frozen=True)
class Option:
    """One option. ``kind`` is what it takes: str, int, float or bool."""

    name: str
    kind: type
    help: str
    panel: str
    short: str = ""
    saved: bool = True
    """Whether it is one of a run's settings; the others say where and whether to run."""
    free: bool = False
    """Whether a resumed run may have another value: it changes no result."""

    @property
    def parameter(self) -> inspect.Parameter:
        """For typer, which makes the flag of it."""
        flag = f"--{self.name.replace('_', '-')}"
        if self.kind is bool and self.saved:
            flag = f"{flag}/--no-{flag[2:]}"
        names = [flag, self.short] if self.short else [flag]
        option = typer.Option(*names, help=self.help, rich_help_panel=self.panel, show_default=False)
        name = f"{self.name}_" if self.name == "from" else self.name
        kind: Any = Annotated[self.kind | None, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("model", str, "Architecture, such as digits-resnet or resnet18-lcnn.", NETWORK),
        Option("depth", int, "Of resnet and resnet-lcnn: 8, 10, 18, 34, 50, 101 or 152.", NETWORK),
        Option("shortcut", str, "Of ResNets: A, B or C. [B]", NETWORK),
        Option("stem", str, "Of resnet and resnet-lcnn: imagenet, or small for 8 to 64 pixels. [imagenet]", NETWORK),
        Option("widths", str, "Of small ResNets: channels of the stages. [16,32,64]", NETWORK),
        Option("blocks", str, "Of small ResNets: blocks of the stages, one number or one each. [1,1,2]", NETWORK),
        Option("dropout", float, "Of AlexNets. [0.5]", NETWORK),
        Option("num_classes", int, "Outputs, where there are more than the data has classes.", NETWORK),
        Option("data", str, "digits, idx:FOLDER, imagefolder:FOLDER, webdataset:FOLDER, fake. [digits]", DATA),
        Option("image_size", int, "Pixels a side of what the network sees; for image files.", DATA),
        Option("resize", int, "Shorter side before the crop. [8/7 of the image size: 256]", DATA),
        Option("augment", str, "resized (random area), crop (as published) or none. [resized]", DATA),
        Option("workers", int, "Processes that read images. [2, at most one a core]", DATA, free=True),
        Option("unreadable_limit", int, "Unreadable images that are passed over. [10]", DATA, free=True),
        Option("from", str, "Checkpoint to go on from, or to compress with --speedup.", START),
        Option("load", str, "File whose tensors are taken by name; says what matched.", START),
        Option("initial_sparsity", str, "Share of zeros in P: 0.5, or LAYER=0.5,re:PATTERN=0.9.", START),
        Option("reinit_coefficients", bool, "Fresh values for the entries of P in use.", START),
        Option("seed", int, "Of the weights, the order of images and all else. [0]", START),
        Option("epochs", int, "Passes over the training images. [30]", RUN),
        Option("batch_size", int, "Images in a batch, over all processes. [64]", RUN),
        Option("batch_pieces", int, "Parts of a batch, to save memory; gradients are averaged.", RUN),
        Option("batches_per_epoch", int, "Size of an epoch, where it is no pass (published: 10000).", RUN),
        Option("optimizer", str, "sgd or adam.", RUN),
        Option(
            "schedule", str, "alexnet, resnet (published), constant, cosine, one-cycle, 1:0.1,8:0.03:5e-4, FILE.", RUN
        ),
        Option("lr", float, "Peak learning rate; scales the schedule.", RUN),
        Option("lr_scale", float, "Multiplies every learning rate.", RUN),
        Option("warmup", float, "Epochs over which the rate rises at first.", RUN),
        Option("momentum", float, "Of SGD; the first decay rate of Adam.", RUN),
        Option("weight_decay", float, "Replaces the schedule's own.", RUN),
        Option("clip_norm", float, "Largest norm of all gradients together.", RUN),
        Option("shift", int, "Random shifts of training images, in pixels.", REGULAR),
        Option("label_smoothing", float, "Share of the target spread over all classes.", REGULAR),
        Option("mixup", float, "alpha of mixup.", REGULAR),
        Option("cutmix", float, "alpha of cutmix.", REGULAR),
        Option("ema", float, "Decay of an average of the weights, which is then the result.", REGULAR),
        Option("device", str, "auto, cpu, cuda, cuda:N or mps. [auto]", MACHINE, free=True),
        Option("bfloat16", bool, "Autocast forward and loss.", MACHINE),
        Option("channels_last", bool, "Memory format, often faster.", MACHINE),
        Option("compile", str, "Backend of torch.compile, such as inductor.", MACHINE),
        Option("gradient_checkpointing", bool, "Recompute blocks instead of keeping them.", MACHINE),
        Option("deterministic", bool, "Only algorithms that give the same bits again.", MACHINE),
        Option("preset", str, "Dictionary sizes by name: fast or accurate.", LOOKUPS),
        Option("first", str, "k of the first layer: a number, identity or dense.", LOOKUPS),
        Option("stages", str, "k of the stages: one, or one each, 16,32,64.", LOOKUPS),
        Option("fc", str, "k of the fully connected layers.", LOOKUPS),
        Option("classifier", str, "k of the classifier.", LOOKUPS),
        Option("threshold_scale", float, "c of the threshold c / sqrt(kh kw k).", LOOKUPS),
        Option("l1_scale", float, "lambda' of the l1 penalty.", LOOKUPS),
        Option("speedup", float, "Counted speedup to reach, with --from.", BUDGET),
        Option(
            "method",
            str,
            "from-dense, lookup-only, converted, pruning, published, low-rank or narrow. [from-dense]",
            BUDGET,
        ),
        Option("dictionary_ratio", float, "k over input channels. [measured, or 0.5 at 10x, less beyond]", BUDGET),
        Option("forms", str, "measured, mixed, lookup or sparse layers. [measured]", BUDGET),
        Option("start", str, "dense weights or scratch. [dense]", BUDGET),
        Option("phase", float, "Share of the run in which the cost is lowered.", BUDGET),
        Option("cuts", int, "Steps in which it is lowered.", BUDGET),
        Option("floor", float, "Share of an even split that every D and P keeps.", BUDGET),
        Option("thresholds", str, "hard, or soft: learned for each D and P.", BUDGET),
        Option("regrowth", float, "Share of the cost that cuts give back to zeros of large gradient.", BUDGET),
        Option("dictionaries", str, "sparse, or dense: of D only rows that nothing reads go, as published.", BUDGET),
        Option("ranking", str, "What cuts take first: fisher, least rise of the loss, or magnitude.", BUDGET),
        Option("layer_budgets", str, "ranking over all layers, uniform, or measured on training images.", BUDGET),
        Option("distillation", float, "Weight of the dense network's answers; 0 for labels alone.", BUDGET),
        Option("temperature", float, "Of the distillation.", BUDGET),
        Option("output", str, "Folder, or best checkpoint (.pt, .safetensors). [lcnn-run]", FILES, "-o", saved=False),
        Option("resume", str, "Go on with the run in this folder.", FILES, saved=False),
        Option("allow_change", bool, "Resume although options differ.", FILES, saved=False),
        Option("overwrite", bool, "Replace the run in the folder.", FILES, saved=False),
        Option("config", str, "YAML file with options; those given here come first.", FILES, saved=False),
        Option("save_every", int, "Batches between two saved states, beside each epoch's.", FILES, free=True),
        Option("log_every", int, "Batches between two lines of loss and sparsity in the log.", FILES, free=True),
        Option("tensorboard", bool, "Write event files into the folder.", FILES, free=True),
        Option("dry_run", bool, "Print model, counts, schedule and data; train nothing.", FILES, saved=False),
        Option("rates", bool, "With --dry-run: measure images/s of reading and of training.", FILES, saved=False),
        Option("quiet", bool, "No progress on stderr.", FILES, "-q", saved=False),
    )
}


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(ctx, **options)`` the signature that the table says."""
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(option.parameter for option in OPTIONS.values())]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, by their names in the table."""
    return {name.rstrip("_"): value for name, value in values.items() if value is not None}


def read_config(path: str) -> dict[str, Any]:
    """The settings in a YAML file, which is read without running anything in it.

    Raises ConfigError for a file that cannot be read, for a key that is no option, and for a value of another kind.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration {path!r}: {getattr(error, 'strerror', error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected options, one a line, such as epochs: 30")
    found = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in OPTIONS or not (OPTIONS[name].saved or name == "output"):
            close = get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `lcnn train --help`"
            raise ConfigError(f"{path}: unknown key {key!r}; {hint}")
        if value is not None:
            found[name] = cast(f"{path}: {name}", OPTIONS[name].kind, value)
    return found


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def cast(where: str, kind: type, value: Any) -> Any:
    """``value`` from a YAML file as what the option takes, else ConfigError. YAML takes 1e-3 for text, and lists."""
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
    elif kind is str and isinstance(value, list):
        return ",".join(map(str, value))
    elif kind is str and isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    elif kind is str and isinstance(value, str | int | float):
        return str(value)
    elif kind is int and isinstance(value, int):
        return value
    elif kind is float and isinstance(value, int | float | str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ConfigError(f"{where} is {value!r}; expected {_KINDS[kind]}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that are not free to change and did, as text."""
    names = [name for name, option in OPTIONS.items() if option.saved and not option.free]
    return [f"{n} was {old.get(n)}, is now {new.get(n)}" for n in names if old.get(n) != new.get(n)]
