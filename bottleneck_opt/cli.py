"""The command line: parse, call the Python interface, print. Only here are errors caught and turned into exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from bottleneck_opt.calibrating import calibrate
from bottleneck_opt.checking import check_limits, measure_again, read_limit, render_verdicts, verdicts_json
from bottleneck_opt.configuring import Known, read_config
from bottleneck_opt.demo.run import run_demo
from bottleneck_opt.diagrams import check_format, render_file
from bottleneck_opt.distribution import joined_ranks
from bottleneck_opt.errors import BottleneckOptError, BudgetError, RanksError
from bottleneck_opt.exporting import export
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.profiling import draw, profile
from bottleneck_opt.reading import find_example, load_saved, read_report
from bottleneck_opt.registry import Listed, list_passes
from bottleneck_opt.report import draw_keras, profile_json, report_json
from bottleneck_opt.result import Result
from bottleneck_opt.sources import (
    find_function,
    find_model,
    one_line,
    read_calibration_path,
    read_shape,
)
from bottleneck_opt.transferring import apply
from bottleneck_opt.version import __version__

app = typer.Typer(
    help="Make a trained PyTorch network smaller, and see what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Argument(help="torchvision:resnet50, timm:resnet50, package.module:factory or file.py:factory.")
]
Weights = Annotated[str | None, typer.Option(help="State dict: .safetensors, or .pt (read without unpickling).")]
Shape = Annotated[
    str | None,
    typer.Option(
        "--input", help="Shape of one example call, such as 1x3x224x224. Default: that of the calibration data."
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(help="Unlabelled inputs: .npy or .safetensors, examples along axis 0, or a folder of images."),
]
Memory = Annotated[
    str | None,
    typer.Option(help="What covariances may take, such as 2GB; more is kept in files. Default: half of what is free."),
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder to keep what long stages made: the same command, broken off, goes on from there."),
]
Limit = Annotated[int, typer.Option(help="Examples read at most.")]
Include = Annotated[list[str] | None, typer.Option(help="Only these module paths (glob; may be repeated).")]
Exclude = Annotated[list[str] | None, typer.Option(help="Not these module paths (glob; may be repeated).")]
Device = Annotated[str | None, typer.Option(help="Where to calibrate and measure.")]
Seed = Annotated[int, typer.Option(help="Of noise and sampling.")]
BudgetText = Annotated[
    str | None,
    typer.Option(help="0.5, 'macs=0.5, params=0.4', 'macs=2G', 'latency=0.7' or 12ms. Default: half the MACs."),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        help="Setting to time in, such as batch=32,threads=2,target=onnxruntime; of several the worst counts."
    ),
]
AllowSlower = Annotated[
    bool | None,
    typer.Option(
        "--allow-slower/--never-slower",
        help="Take replacements that are no faster here. Default: only if there is no other way.",
    ),
]


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file of optimize's options set what the command line leaves out.

    Other commands take from it what they share, but not where to write: theirs are other files.
    """
    whole: Any = context.find_root().command
    optimizing = context.command.name == "optimize"
    options = [each for each in whole.commands["optimize"].params if each.name not in (None, "config", "help")]
    known = [Known(str(each.name), _spell(each.name, each.opts), bool(each.multiple)) for each in options]
    shared = {each.name for each in context.command.params if optimizing or each.name != "out"}
    context.default_map = {name: value for name, value in read_config(path, known).items() if name in shared}
    return path


def _spell(name: str | None, spellings: list[str]) -> str:
    return next((each[2:] for each in spellings if each.startswith("--")), str(name))


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", is_eager=True, callback=_configure,
        help="TOML file with options of optimize. Default: the table tool.bottleneck-opt of ./pyproject.toml.",
    ),
]  # fmt: skip
Saved = Annotated[Path, typer.Argument(help="The folder that optimize wrote.")]
Passes = Annotated[
    str | None, typer.Option(help="Names between commas, options after colons: reduce,tucker:steps=4 (see passes).")
]
Evaluate = Annotated[str | None, typer.Option(help="package.module:function of a model, higher is better.")]
Out = Annotated[Path, typer.Option(help="Folder for the model, the plan, the pictures and the report.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write: .svg, .png, .pdf or .dot.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Detail = Literal["auto", "stage", "block", "layer", "operation"]
Heat = Literal["macs", "params", "ms"]
Colours = Literal["light", "dark"]
_INTERRUPTED = 130


class Style(str, Enum):
    """How the profile command prints."""

    COST = "cost"
    KERAS = "keras"


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command("optimize")
def optimize_command(
    model: Model,
    weights: Weights = None,
    input_shape: Shape = None,
    calibration: Calibration = None,
    calibration_limit: Limit = 256,
    statistics: Annotated[
        Path | None, typer.Option(help="File that the calibrate command wrote: the data is not looked at again.")
    ] = None,
    budget: BudgetText = None,
    passes: Passes = None,
    include: Include = None,
    exclude: Exclude = None,
    evaluate: Evaluate = None,
    max_drop: Annotated[
        float | None, typer.Option(help="How far that metric may drop, such as 0.01: finds the smallest model within.")
    ] = None,
    recover: Annotated[
        int | None, typer.Option(help="Steps of training towards the original's outputs, without labels, such as 300.")
    ] = None,
    out: Out = Path("out"),
    memory: Memory = None,
    timing: Setting = None,
    allow_slower: AllowSlower = None,
    cache: Cache = None,
    device: Device = None,
    seed: Seed = 0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compress a model and write it, with before/after pictures and a report, to a folder. torchrun shares the work."""
    with joined_ranks() as ranks:
        found = find_model(model, weights)
        ranks.share_weights(found)
        example = _read_example(input_shape)
        result = optimize(
            found,
            example,
            calibration=_read_data(calibration, found, model, example, calibration_limit),
            calibration_limit=calibration_limit, statistics=statistics, budget=budget,
            passes=passes, include=include or None, exclude=exclude or None,
            evaluate=None if evaluate is None else find_function(evaluate), max_drop=max_drop, recover=recover,
            memory=memory, timing=timing or None, allow_slower=allow_slower, cache=cache, device=device, seed=seed,
            progress=not as_json and ranks.is_first, ranks=ranks,
        )  # fmt: skip
        if not ranks.is_first:
            return
    _write_result(result, out, as_json=as_json)
    if result.promise is not None and not result.budget_met:
        raise BudgetError(
            f"budget {result.plan.budget}: not met within max_drop={max_drop:g}; the nearest model that keeps it was "
            f"written to {out}. Allow a larger drop or budget, or add --recover."
        )


@app.command("calibrate")
def calibrate_command(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("statistics.safetensors"),
    weights: Weights = None,
    input_shape: Shape = None,
    calibration: Calibration = None,
    calibration_limit: Limit = 256,
    include: Include = None,
    exclude: Exclude = None,
    memory: Memory = None,
    cache: Cache = None,
    device: Device = None,
    seed: Seed = 0,
    config: Config = None,
) -> None:
    """Look at the calibration data once; optimize --statistics then tries any number of budgets."""
    with joined_ranks() as ranks:
        found = find_model(model, weights)
        ranks.share_weights(found)
        example = _read_example(input_shape)
        statistics = calibrate(
            found,
            example,
            calibration=_read_data(calibration, found, model, example, calibration_limit),
            calibration_limit=calibration_limit, include=include or None, exclude=exclude or None, memory=memory,
            cache=cache, device=device, seed=seed, progress=ranks.is_first, ranks=ranks,
        )  # fmt: skip
        if ranks.is_first:
            seen = statistics.origin.data if statistics.origin else f"{statistics.examples} examples"
            typer.echo(f"{len(statistics.layers)} layers, {seen}; written to {statistics.save(out)}")


@app.command("apply")
def apply_command(
    plan: Annotated[Path, typer.Argument(help="The plan.json that optimize wrote, or its folder.")],
    model: Model,
    weights: Weights = None,
    input_shape: Shape = None,
    calibration: Calibration = None,
    calibration_limit: Limit = 256,
    passes: Passes = None,
    evaluate: Evaluate = None,
    out: Out = Path("out"),
    memory: Memory = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Of noise and sampling. Default: the plan's.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Carry the same plan out on other weights of the model, such as those of a later training."""
    found = find_model(model, weights)
    example = find_example(plan) if input_shape is None else read_shape(input_shape)
    result = apply(
        plan,
        found,
        example,
        calibration=_read_data(calibration, found, model, example, calibration_limit),
        calibration_limit=calibration_limit, passes=None if passes is None else passes.split(","),
        evaluate=None if evaluate is None else find_function(evaluate), memory=memory, device=device, seed=seed,
        progress=not as_json,
    )  # fmt: skip
    _write_result(result, out, as_json=as_json)


def _read_example(shape: str | None) -> Tensor | None:
    return None if shape is None else read_shape(shape)


def _read_data(given: str | None, model: nn.Module, name: str, example: Tensor | None, limit: int) -> Any:
    return None if given is None else read_calibration_path(given, model, name=name, inputs=example, limit=limit)


def _write_result(result: Result, out: Path, *, as_json: bool) -> None:
    folder = result.save(out)
    if as_json:
        typer.echo(report_json(result))
        return
    typer.echo(str(result))
    typer.echo(f"written to {folder}; open {folder / 'report.html'}")


@app.command("export")
def export_command(
    folder: Saved,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .onnx or .pt2.")] = Path("model.onnx"),
    input_shape: Shape = None,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="As many examples as --input has.")] = False,
    opset: Annotated[int | None, typer.Option(help="Version of the ONNX operators. Default: torch's.")] = None,
    check: Annotated[bool, typer.Option(help="Run the file and compare it with the model.")] = True,
    quantize: Annotated[
        Literal["int8"] | None, typer.Option(help="int8: layers of 8 bits, with ranges from --calibration.")
    ] = None,
    calibration: Calibration = None,
    calibration_limit: Limit = 256,
    as_json: AsJson = False,
) -> None:
    """Write a saved result as one file that ONNX Runtime or torch runs; the file is run and compared first."""
    loaded, example = load_saved(folder, find_model(model), input_shape)
    written = export(
        loaded, example, output, dynamic_batch=not fixed_batch, opset=opset, check=check, quantize=quantize,
        calibration=_read_data(calibration, loaded, model, example, calibration_limit),
        calibration_limit=calibration_limit,
    )  # fmt: skip
    typer.echo(json.dumps(asdict(written), indent=2, default=str) if as_json else str(written))


@app.command("check")
def check_command(
    folder: Saved,
    max_macs: Annotated[str | None, typer.Option(help="Share of the original such as 0.5, or 2G.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Share of the original such as 0.5, or 10M.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Share of the original's time such as 0.8, or 0.7ms.")] = None,
    max_drop: Annotated[str | None, typer.Option(help="Of the metric, in its own units, such as 0.01.")] = None,
    max_change: Annotated[str | None, typer.Option(help="Of the output, squared, of its variance.")] = None,
    measure: Annotated[str | None, typer.Option(help="MODEL: time it and the result again, on this machine.")] = None,
    input_shape: Shape = None,
    as_json: AsJson = False,
) -> None:
    """Hold a saved result to limits; the exit code is 1 when one is broken or has nothing to compare with."""
    typed = {"macs": max_macs, "params": max_params, "latency": max_latency, "drop": max_drop, "change": max_change}
    limits = [read_limit(name, text) for name, text in typed.items() if text is not None]
    if not limits:
        raise typer.BadParameter("nothing is limited; give for instance --max-macs 0.5")
    report = read_report(folder)
    if measure is not None:
        report = measure_again(report, folder, find_model(measure), input_shape)
    verdicts = check_limits(report, limits)
    typer.echo(verdicts_json(verdicts) if as_json else render_verdicts(verdicts))
    if not all(each.passed for each in verdicts):
        raise typer.Exit(1)


@app.command("profile")
def profile_command(
    model: Model,
    weights: Weights = None,
    input_shape: Shape = None,
    style: Annotated[Style, typer.Option(help="cost: what each layer costs; keras: as model.summary().")] = Style.COST,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show where a model's multiply-adds, parameters and milliseconds are."""
    if as_json and style is not Style.COST:
        raise typer.BadParameter(f"--json prints all numbers in one form; leave out --style {style.value}")
    shape = _read_example(input_shape)
    table = profile(find_model(model, weights), shape, timed=style is Style.COST)
    if style is Style.KERAS:
        console = Console(highlight=False)
        console.print(draw_keras(table.summary, width=console.width))
        return
    typer.echo(profile_json(table.traced, table.milliseconds) if as_json else str(table))


@app.command("draw")
def draw_command(
    model: Model,
    output: Output = Path("model.svg"),
    weights: Weights = None,
    input_shape: Shape = None,
    detail: Annotated[Detail, typer.Option(help="How much is folded; auto: the finest that fits on a page.")] = "auto",
    heat: Annotated[Heat, typer.Option(help="What fill and bars measure; ms is timed for it.")] = "macs",
    theme: Annotated[Colours, typer.Option(help="Colours.")] = "light",
    config: Config = None,
) -> None:  # fmt: skip
    """Draw a model with the cost of every layer."""
    check_format(output)
    inputs = _read_example(input_shape)
    picture = draw(find_model(model, weights), inputs, detail=detail, heat=heat, theme=theme)
    note = render_file(picture, output)
    typer.echo(f"written to {output}{f'; {note}' if note else ''}")


@app.command("passes")
def passes_command(as_json: AsJson = False) -> None:
    """List the installed passes, their options and where they come from."""
    listed = list_passes()
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in listed], indent=2))
        return
    Console().print(_passes_table(listed))


def _passes_table(listed: tuple[Listed, ...]) -> Table:
    table = Table("pass", "what it does", "options", "from", box=None, header_style="bold", padding=(0, 2, 1, 0))
    for each in listed:
        what = f"CANNOT BE USED: {each.error}" if each.error else each.summary
        only = "" if each.default or each.error else " (used when named)"
        options = "\n".join(map(str, each.options)) or ("" if each.error else "none")
        table.add_row(each.name, escape(what + only), escape(options), f"{each.origin} {each.version}")
    return table


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Train a small network on bundled digits, compress it twice, measure it, and draw what changed."""
    run_demo(out, as_json=as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 bad input or a broken limit, 2 wrong usage, 130 interrupted."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        code = _call(arguments)
    except BottleneckOptError as error:
        if isinstance(error, RanksError) and error.told:
            return 1
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        print("interrupted; nothing half-written was left", file=sys.stderr)
    return code


def _call(arguments: list[str] | None) -> int:
    """The exit code that typer comes back with; some of its versions turn an interrupt into one, 130."""
    try:
        outcome: Any = app(args=arguments, standalone_mode=False, prog_name="bottleneck-opt")
    except (BottleneckOptError, typer.Abort):
        raise
    except typer.Exit as stop:
        return int(stop.exit_code)
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()  # click's usage errors print themselves
        return int(error.exit_code)
    return outcome if isinstance(outcome, int) else 0
