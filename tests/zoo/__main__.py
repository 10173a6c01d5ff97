"""Run the zoo and print its table: ``python -m tests.zoo`` or, for some models, ``python -m tests.zoo 'timm/*'``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.zoo.families import list_names
from tests.zoo.run import RESULTS, Limits, read_rows, run_into
from tests.zoo.table import describe, make_details, make_table


def main() -> None:
    """Read the options, run, print."""
    options = _read_options()
    names = list_names(options.patterns or ["*"])
    if options.list:
        print("\n".join(names))
        return
    if options.fresh:
        options.out.unlink(missing_ok=True)
    limits = Limits(options.seconds, options.gib * 2**30)
    run_into(options.out, names, limits, processes=options.processes, tell=lambda row: print(describe(row), flush=True))
    wanted = set(names)
    rows = [row for row in read_rows(options.out) if row.name in wanted]
    summary = f"{make_table(rows)}\n\n{make_details(rows)}\n"
    options.out.with_suffix(".md").write_text(summary, encoding="utf-8")
    print(summary)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description="Check every model of the zoo.")
    parser.add_argument("patterns", nargs="*", help="globs over family/model, such as 'timm/*resnet*'; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; models that have one are not run again")
    parser.add_argument("--fresh", action="store_true", help="start the file anew")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--processes", type=int, default=1, help="how many models at a time")
    parser.add_argument("--seconds", type=float, default=180.0, help="time limit of one model")
    parser.add_argument("--gib", type=int, default=14, help="memory limit of one model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
