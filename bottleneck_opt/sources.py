"""Find what is only named: a model, its weights, calibration data, a function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bottleneck_opt.errors import FileError, InputError, ModelError
from bottleneck_opt.images import Pictures, find_preparation, read_images
from bottleneck_opt.tracing import choose_inputs
from bottleneck_opt.working_copy import working_copy

_ZOOS = ("torchvision", "timm")
_ANOTHER = ", an example call (--input, inputs=) sets another"
_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def one_line(foreign: object, *, width: int | None = None) -> str:
    r"""A message without colours and line breaks, cut between words where it is longer than ``width``.

    Example:
        >>> one_line("first\n  second third", width=15)
        'first second ...'
    """
    text = " ".join(_COLOURS.sub("", str(foreign)).split())
    if width is None or len(text) <= width:
        return text
    return text[: width + 1].rsplit(" ", 1)[0][:width].rstrip(" .,;:([{") + " ..."


def find_model(name: str, weights: str | None = None) -> nn.Module:
    """The model that ``MODEL`` on the command line stands for, in eval mode.

    Args:
        name: ``torchvision:resnet50``, ``timm:resnet50``, ``package.module:factory`` or ``file.py:factory``; the
            factory is a callable without arguments or a module.
        weights: A state dict, ``.safetensors`` or ``.pt``.

    Raises:
        ModelError: There is no such model, or making it fails.
        FileError: The weights cannot be read or do not fit.
    """
    source, _, attribute = name.partition(":")
    if not attribute:
        raise ModelError(
            f"MODEL: got '{name}'; expected 'torchvision:resnet50', 'timm:resnet50', 'package.module:factory' or "
            "'file.py:factory'. Put a colon between where it is and what it is called."
        )
    model = _build_from_zoo(source, attribute) if source in _ZOOS else _call_factory(find_object(name), name)
    if not isinstance(model, nn.Module):
        raise ModelError(f"MODEL: '{name}' gave a {type(model).__name__}; expected a torch.nn.Module.")
    if weights is not None:
        _load_weights(model, Path(weights))
    return model.eval()


def _build_from_zoo(zoo: str, name: str) -> Any:
    try:
        library = importlib.import_module(f"{zoo}.models" if zoo == "torchvision" else zoo)
    except Exception as error:  # a torchvision built for another torch fails in its own ways
        raise ModelError(f"MODEL: {_why_not_imported(zoo, error)}") from error
    try:
        return _build_torchvision(library, name) if zoo == "torchvision" else library.create_model(name)
    except Exception as error:  # each library refuses an unknown name with its own exception
        raise ModelError(f"MODEL: {zoo} cannot build '{name}': {error}. Check the name.") from error


def _build_torchvision(library: Any, name: str) -> Any:
    """A torchvision model without any download: detectors and segmenters would fetch weights for their backbone."""
    parameters = inspect.signature(library.get_model_builder(name)).parameters
    nothing = {option: None for option in ("weights", "weights_backbone") if option in parameters}
    return library.get_model(name, **nothing)


def _why_not_imported(zoo: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == zoo:
        return f"{zoo} is not installed. Install it: pip install {zoo}"
    return (
        f"{zoo} is installed but cannot be imported: {type(error).__name__}: {_sentence(error)} "
        f"torchvision must match torch, which is {torch.__version__} here: install the release made for it."
    )


def _sentence(error: Exception) -> str:
    text = one_line(error, width=200)
    return text if text.endswith(".") else f"{text}."


def find_object(name: str) -> Any:
    """The object that ``package.module:attribute`` or ``file.py:attribute`` names.

    Raises:
        ModelError: The module cannot be imported or has no such attribute.
    """
    source, _, attribute = name.partition(":")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
        return getattr(module, attribute)
    except AttributeError as error:
        raise ModelError(f"'{name}': {source} has no '{attribute}'. Check the name after the colon.") from error
    except Exception as error:  # the user's file may raise anything while it is imported
        raise ModelError(f"'{name}': {source} cannot be imported: {type(error).__name__}: {error}.") from error


def _import_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it: the user's own package in the current folder
    return importlib.import_module(name)


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _call_factory(factory: Any, name: str) -> Any:
    if isinstance(factory, nn.Module) or not callable(factory):
        return factory
    try:
        return factory()
    except Exception as error:  # the user's own code
        raise ModelError(f"MODEL: calling '{name}' failed: {type(error).__name__}: {error}.") from error


def _load_weights(model: nn.Module, path: Path) -> None:
    state = _read_tensors(path, "the weights", expected=".safetensors, or .pt with a state dict")
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError) as error:
        raise FileError(
            f"{path}: does not fit the model: {_sentence(error)} Pass the state dict of this very model."
        ) from error


def _read_tensors(path: Path, what: str, *, expected: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in (".pt", ".pth", ".bin"):
            return _state_of(torch.load(path, map_location="cpu", weights_only=True), path)
    except FileError:
        raise
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(f"{path}: {what} cannot be read: {error}.") from error
    except Exception as error:  # torch.load raises many kinds for a damaged or unsafe file
        raise FileError(
            f"{path}: {what} cannot be read without unpickling: {_sentence(error)} "
            "Save tensors only: torch.save(model.state_dict(), path)."
        ) from error
    raise FileError(f"{path}: got a '{path.suffix}' file for {what}; expected {expected}.")


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileError(f"{path}: holds a {type(content).__name__}; expected a state dict (names and tensors).")
    return content


def read_shape(text: str) -> Tensor:
    """Noise of a shape such as ``1x3x224x224``.

    Raises:
        InputError: The text is no shape.
    """
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(
            f"--input: got '{text}'; expected numbers with x between them. Write for instance 1x3x224x224."
        )
    return torch.randn([int(part) for part in parts], generator=torch.Generator().manual_seed(0), device="cpu")


def read_calibration_path(
    path: str | Path, model: nn.Module, *, inputs: Any = None, limit: int, name: str = ""
) -> Tensor | Pictures:
    """Calibration inputs from a folder of images, or from a ``.npy`` or ``.safetensors`` file.

    Args:
        path: Where they are.
        model, limit, name: As for :func:`read_calibration_folder`.
        inputs: The example call, whose size images get; None where there is none.

    Raises:
        FileError, InputError, ModelError: As for :func:`read_calibration_folder` and :func:`read_calibration_file`.
    """
    source = Path(path)
    if not source.is_dir():
        return read_calibration_file(source)
    example = inputs[0] if isinstance(inputs, tuple | list) and len(inputs) == 1 else inputs
    if example is not None and not isinstance(example, Tensor):
        raise InputError(
            f"calibration {source}: a folder of images is for a model that is called with one image tensor; inputs= is "
            f"a {type(inputs).__name__}. Pass an iterable of batches of that form."
        )
    return read_calibration_folder(source, model, name, example, limit)


def read_calibration_folder(folder: Path, model: nn.Module, name: str, example: Tensor | None, limit: int) -> Pictures:
    """The images of a folder as inputs of a model.

    Args:
        folder: Where they are.
        model: It may say how it wants them. Where no size is known, a copy is run to find one.
        name: What it is called on the command line; empty elsewhere.
        example: Of the size that they get; None for the one that the model says, or that is found to run.
        limit: Images read at most.

    Raises:
        FileError, InputError: As for :func:`bottleneck_opt.images.read_images`.
        ModelError: No size is given and none is found.
    """
    transforms = _find_transforms(name)
    cut = getattr(transforms, "crop_size", None)
    if example is not None:
        shape, sized = tuple(example.shape[1:]), ""
    elif cut:
        shape, sized = (3, cut[0], cut[0]), f"; size from torchvision's weights{_ANOTHER}"
    else:
        call, (note,) = choose_inputs(working_copy(model), None)
        shape, sized = tuple(call.tensors()[0].shape[1:]), f"; size {note.rpartition(', ')[2]}{_ANOTHER}"
    preparation = find_preparation(model, shape[0] if shape else 0, transforms)
    read = read_images(folder, shape, preparation, limit=limit)
    return replace(read, note=f"{read.note}{sized}")


def _find_transforms(name: str) -> Any:
    """What torchvision prepares images with for the weights of a model; None where there are no such."""
    zoo, _, model = name.partition(":")
    if zoo != "torchvision":
        return None
    try:
        return importlib.import_module("torchvision.models").get_model_weights(model).DEFAULT.transforms()
    except (ImportError, RuntimeError, ValueError, AttributeError):  # not every model has weights
        return None


def read_calibration_file(path: Path) -> Tensor:
    """A tensor of calibration inputs from ``.npy`` or ``.safetensors``.

    Raises:
        FileError: It cannot be read or holds something else.
    """
    if not path.exists():
        raise FileError(
            f"{path}: calibration data cannot be read: no such file or folder. "
            "Name a .npy or .safetensors file, or a folder of images."
        )
    if path.suffix == ".npy":
        return _read_numpy(path)
    tensors = _read_tensors(
        path, "calibration data", expected=".npy or .safetensors, examples along axis 0, or a folder"
    )
    if len(tensors) != 1:
        raise FileError(
            f"{path}: holds {len(tensors)} tensors; expected one, examples along axis 0. "
            "Save the inputs alone, preprocessed as the model takes them."
        )
    return next(iter(tensors.values()))


def _read_numpy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise FileError(
            f"{path}: calibration data cannot be read: {_sentence(error)} Save one array with numpy.save."
        ) from error


def find_function(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names. Raises ModelError when there is none."""
    found = find_object(name)
    if not callable(found):
        raise ModelError(f"'{name}' is a {type(found).__name__}; expected a function.")
    return found  # type: ignore[no-any-return]  # found by name at run time
