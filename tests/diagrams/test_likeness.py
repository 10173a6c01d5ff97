from dataclasses import replace

from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.layout import Group
from bottleneck_opt.diagrams.likeness import Likeness
from bottleneck_opt.diagrams.picture import Edge, Part, picture_model
from bottleneck_opt.diagrams.units import Unit
from bottleneck_opt.graph import Cost, Node
from tests.samples import Run

CLASSES = ("Sequential", "Block")


def part(key: str, operation: str, macs: int = 0) -> Part:
    node = Node(key, "module", operation, key, (), (), (), ((1, 4),), cost=Cost(macs=macs))
    return Part(key, Unit((node,), ()))


def test_blocks_with_other_wiring_are_not_alike() -> None:
    edges = [Edge("a1", "a2"), Edge("a2", "a3"), Edge("b1", "b2"), Edge("b1", "b3")]
    one, other = ([part(f"{name}{i}", "ReLU") for i in (1, 2, 3)] for name in "ab")
    assert Likeness(edges).match(one, other) is None


def test_blocks_with_other_costs_are_alike_only_when_numbers_do_not_count() -> None:
    one, other = [part("a", "Linear", 5)], [part("b", "Linear", 6)]
    assert Likeness([]).match(one, other) is None
    assert Likeness([]).match(one, other, loose=True) == (0,)


def fork(run: Run, path: str, x: str, names: tuple[str, str]) -> str:
    """A 3x3 and a 1x1 that read the same tensor, run in the order of their names."""
    kernels = {"left": 3, "right": 1}
    made = {name: run.conv(f"{path}.{name}", x, 4, 4, kernel=kernels[name], classes=CLASSES) for name in names}
    return run.function("add", (made["left"], made["right"]), 4, path=path)


def test_blocks_that_run_their_branches_in_another_order_are_drawn_once() -> None:
    run = Run()
    x = run.conv("stem", run.input(3), 3, 4)
    for index, names in enumerate([("left", "right"), ("right", "left"), ("left", "right")]):
        x = fork(run, f"forks.{index}", x, names)
    run.output(x)
    layout = fold(picture_model(run.traced()), detail="layer")
    outer = next(item for item in layout.items if isinstance(item, Group))
    group = next(item for item in outer.items if isinstance(item, Group)) if len(outer.paths) == 1 else outer
    assert group.paths == ("forks.0", "forks.1", "forks.2")
    assert [box.paths for box in group.boxes()][:2] == [
        ("forks.0.left", "forks.1.left", "forks.2.left"),
        ("forks.0.right", "forks.1.right", "forks.2.right"),
    ]


def test_names_inside_blocks_do_not_keep_them_apart() -> None:
    one, other = part("a.first", "Linear"), part("b.second", "Linear")
    assert Likeness([]).match([one], [replace(other, key="b.second")]) == (0,)
