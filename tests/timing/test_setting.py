from __future__ import annotations

from typing import Any

import pytest

from bottleneck_opt.errors import InputError
from bottleneck_opt.timing import Timing, read_timings


@pytest.mark.parametrize(
    ("given", "timings"),
    [
        (None, [Timing()]),
        ("threads=2", [Timing(threads=2)]),
        (" batch = 32 , target = onnxruntime ", [Timing(32, 1, "onnxruntime")]),
        (Timing(batch=4), [Timing(4)]),
        (["batch=1", Timing(32, 2), "batch=1"], [Timing(1), Timing(32, 2)]),
    ],
)
def test_what_can_be_typed_is_read(given: Any, timings: list[Timing]) -> None:
    assert list(read_timings(given)) == timings


@pytest.mark.parametrize(
    "wrong",
    ["", "batch", "batch=", "batch=0", "batch=-1", "batch=1,batch=2", "threads=0", "threads=many", "cores=2",
     "target=tensorrt", "batch=1.5", [], [3]],
)  # fmt: skip
def test_what_is_no_setting_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^timing: got .*; expected "):
        read_timings(wrong)
