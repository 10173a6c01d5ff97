"""An ``.onnx`` file as a module, to measure it with the code that measured the model it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bottleneck_opt.errors import FileError, InputError
from bottleneck_opt.exporting.onnx_file import Session, check_packages, start_session
from bottleneck_opt.files import as_path
from bottleneck_opt.sources import one_line


class OnnxModel(nn.Module):
    """A file that ONNX Runtime runs on the CPU. It has no parameters, knows no gradients and is always in eval mode."""

    def __init__(self, session: Session, name: str) -> None:
        super().__init__()
        self._session = session
        self._name = name
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The file's output, or a tuple of them where there are several.

        Raises:
            InputError: The file takes something else.
        """
        try:
            outputs = self._session(*args, **kwargs)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            said = one_line(error, width=200).rstrip(" .")
            raise InputError(
                f"{self._name}: ONNX Runtime cannot run it on what was given: {said}. "
                f"It takes {self._session.describe()}."
            ) from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        """What it takes, shown when the module is printed."""
        return f"{self._name}: {self._session.describe()}"


def open_onnx(path: str | Path) -> OnnxModel:
    """An ``.onnx`` file as a module, so that your own ``evaluate`` can measure it.

    Args:
        path: The file, such as :func:`export` wrote, in float or in 8 bits.

    Raises:
        FileError: It cannot be read.
        ExportError: A package is missing, or ONNX Runtime cannot run the file.

    Example:
        >>> import tempfile, torch, bottleneck_opt as bo
        >>> net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.randn(16, 3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = bo.export(net, x[:1], f"{folder}/net.onnx", quantize="int8", calibration=x)
        ...     model = open_onnx(written.path)
        >>> model(x).shape
        torch.Size([16, 8, 6, 6])
    """
    file = as_path(path, "open_onnx")
    check_packages(run=True)
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(f"{file}: cannot be read: {reason}. Name the .onnx file that export wrote.") from error
    advice = "Name a whole file, one that export wrote."
    return OnnxModel(start_session(content, name=file.name, advice=advice), file.name)
