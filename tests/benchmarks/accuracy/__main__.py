"""Train, compress, measure, print: ``python -m tests.benchmarks.accuracy --help``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.accuracy.latency import BATCHES, TIMED, Timed, compare, read_times, render_latency
from tests.benchmarks.accuracy.methods import ABLATIONS, BASELINES, METHODS, OURS
from tests.benchmarks.accuracy.rows import Key, Row, matches, read_filter, read_rows, write_rows
from tests.benchmarks.accuracy.running import (
    ABLATION_BUDGETS,
    BUDGETS,
    DRAWS,
    TRAININGS,
    list_keys,
    list_missing,
    run,
)
from tests.benchmarks.accuracy.table import describe_macs, describe_original, render
from tests.benchmarks.accuracy.tasks import TASKS
from tests.benchmarks.accuracy.training import train_all

OUT = Path("out/accuracy")
KEPT = Path(__file__).parent / "measured.jsonl"


def main() -> None:
    """Run the phases that were asked for; rows that are there are not measured again."""
    options = _read_options()
    only = read_filter(options.only)
    rows = options.out / "rows.jsonl"
    known = {} if options.afresh else read_rows(KEPT)
    if options.phase in {"all", "train"}:
        names = [name for name in TASKS if matches_name("network", name, only)]
        train_all(names, [seed for seed in TRAININGS if matches_name("training", str(seed), only)])
    if options.phase in {"all", "accuracy"}:
        keys = list_missing(list_wanted(only), {**known, **read_rows(rows)})
        for number, text in enumerate(run(keys, rows, workers=options.workers), 1):
            print(f"[{number}] {text}", flush=True)
    if options.phase in {"all", "latency"}:
        names, methods = (
            [each for each in known if matches_name(field, each, only)]
            for field, known in (("network", TASKS), ("method", TIMED))
        )
        compare(options.out, names, methods)
    found = {**known, **read_rows(rows)}
    if options.keep:
        write_rows(KEPT, found.values())
    measured = list(found.values())
    print_tables(measured)
    print_latency(read_times(options.out))


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accuracy", description=__doc__)
    parser.add_argument("--phase", choices=["all", "train", "accuracy", "latency", "table"], default="all")
    parser.add_argument("--only", default="", help="such as network=dncnn|vgg,training=0,draw=0,method=ours")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--afresh", action="store_true", help="forget the rows that are kept beside this program")
    parser.add_argument("--keep", action="store_true", help="keep all rows there, for those who go on elsewhere")
    parser.add_argument("--out", type=Path, default=OUT, help="where rows are kept")
    return parser.parse_args()


def matches_name(field: str, value: str, only: list[tuple[str, frozenset[str]]]) -> bool:
    """Whether a filter lets one field's value through."""
    return all(value in values for name, values in only if name == field)


def list_wanted(only: list[tuple[str, frozenset[str]]]) -> list[Key]:
    """The keys of the tables, and those of methods and further trainings that only a filter names."""
    methods, named = (
        [value for name, values in only if name == field for value in sorted(values)]
        for field in ("method", "training")
    )
    extra = [
        Key(network, training, draw, method, budget)
        for network in TASKS for training in sorted({*TRAININGS, *map(int, named)}) for draw in DRAWS
        for method in methods if method not in METHODS or training not in TRAININGS for budget in BUDGETS
    ]  # fmt: skip
    return [key for key in (*list_keys(), *extra) if matches(key, only)]


def print_tables(rows: list[Row]) -> None:
    """For each network what is compared, then what each ingredient is worth."""
    for name, task in TASKS.items():
        mine = [row for row in rows if row.key.network == name]
        if not mine:
            continue
        print(f"\n{name}: {describe_original(mine, task.unit)}; change in {task.unit} (and of the output)\n")
        named = dict.fromkeys([*OURS, *BASELINES, *(row.key.method for row in mine if row.key.method not in ABLATIONS)])
        print("\n".join(render(mine, title="MACs", methods=list(named), budgets=BUDGETS)))
        print(f"\n{describe_macs(mine, BUDGETS)}")
        if any(row.key.method in ABLATIONS for row in mine):
            print()
            methods = ["ours", *ABLATIONS]
            print("\n".join(render(mine, title="ingredients, MACs", methods=methods, budgets=ABLATION_BUDGETS)))


def print_latency(times: list[Timed]) -> None:
    """At equal measured time the most accurate network of each method."""
    for name in TASKS:
        for batch in BATCHES:
            lines = render_latency(times, name, batch)
            if lines:
                print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
