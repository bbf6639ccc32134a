"""CLIP models through open_clip: the one file of the project that knows it.

The rule it holds: weights trained with QuickGELU never run with plain GELU by accident, and the
other way round. After loading, the modules themselves are asked what they run.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError, Preprocess
from trainables.backbones.folder import CONFIG_FILE, MERGES_FILE, WEIGHTS_FILE
from trainables.backbones.weights import (
    digest,
    is_half_precision,
    load_strictly,
    read_weights,
    sha256,
)
from trainables.images.resample import Interpolation, ResizeMode
from trainables.text import did_you_mean


def _provide_torchvision_operators() -> None:
    """Let `import torchvision` succeed where its compiled operators cannot load.

    A CPU build of torch beside a CUDA build of torchvision dies at import time with
    «operator torchvision::nms does not exist». Nothing in this project calls those operators, so
    an empty stand-in for the module that registers their shapes is enough. Where the operators
    are present, nothing is touched.
    """
    if "torchvision" in sys.modules:
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018 - the attribute access is the probe
    except (AttributeError, RuntimeError):
        name = "torchvision._meta_registrations"
        sys.modules.setdefault(name, types.ModuleType(name))


_provide_torchvision_operators()

import open_clip  # noqa: E402 - the operators must be provided first
from open_clip.convert import convert_state_dict  # noqa: E402
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, convert_to_custom_text_state_dict  # noqa: E402
from open_clip.pretrained import download_pretrained, get_pretrained_cfg  # noqa: E402
from open_clip.timm_model import TimmModel  # noqa: E402
from open_clip.transform import PreprocessCfg  # noqa: E402
from open_clip.transformer import QuickGELU  # noqa: E402

__all__ = ["open_clip", "open_folder", "open_openai_file", "open_spec"]

CLIP_VOCABULARY = 49408

Config = dict[str, Any]
Tokenizer = Callable[[list[str]], Tensor]


def open_spec(spec: str) -> Backbone:
    """A backbone by its specification, on the CPU; raises `BackboneError`.

    `ARCH` (the same as `ARCH:openai`), `ARCH:TAG` (downloaded), `ARCH:FILE`, `ARCH-gelu:FILE`
    (plain GELU on purpose), `openai:FILE` (dimensions inferred), `DIR` or `local-dir:DIR`.
    """
    head, _, rest = spec.partition(":")
    if head == "local-dir" or Path(spec).is_dir():
        return open_folder(Path(rest if head == "local-dir" else spec), spec)
    if head == "openai":
        return open_openai_file(Path(rest), spec)
    plain = head.endswith("-gelu") and head not in open_clip.list_models()
    arch = head.removesuffix("-gelu") if plain else head
    if arch not in open_clip.list_models():
        raise BackboneError(_unknown(head))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    tag = rest or "openai"
    if plain and (tag in tags or not _is_file_name(tag)):
        raise BackboneError(
            f"'-gelu' takes a file, got {spec!r}: say '{head}:FILE', or '{arch}:TAG' for published "
            "weights, which say themselves which activation they need"
        )
    if tag in tags:
        return _open_tag(arch, tag, spec)
    if not _is_file_name(tag):
        raise BackboneError(did_you_mean(f"file or published weights of {arch}", tag, tags))
    return _open_file(arch, Path(tag), spec, plain)


def open_folder(folder: Path, name: str) -> Backbone:
    """A folder with `open_clip_config.json` and `open_clip_model.safetensors`.

    A `bpe_merges.txt.gz` beside them is the tokenizer's vocabulary.
    """
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"a model folder holds {CONFIG_FILE} with a model_cfg, {str(folder)!r} does not "
            f"({error!r}): check the path"
        ) from error
    model = _construct(config, name)
    load_strictly(model, read_weights(folder / WEIGHTS_FILE).tensors, name)
    merges = folder / MERGES_FILE
    own = merges if merges.is_file() else None
    return _finish(name, model, config, preprocess, _tokenizer(config, name, own), own)


def open_openai_file(path: Path, name: str) -> Backbone:
    """A state dict in OpenAI's layout: dimensions from its shapes, QuickGELU always.

    Weights keep their precision; open_clip's own builder would pass them through float16.
    """
    tensors = read_weights(path).tensors
    config = _openai_config(tensors, path)
    model = _construct(config, name)
    load_strictly(model, tensors, str(path))
    return _finish(name, model, config, {}, _tokenizer(config, name))


def _open_tag(arch: str, tag: str, name: str) -> Backbone:
    """Published weights, which say themselves whether they need QuickGELU."""
    published = get_pretrained_cfg(arch, tag)
    config = open_clip.get_model_config(arch)
    # `create_model` only warns here and then runs the wrong activation.
    config["quick_gelu"] = bool(config.get("quick_gelu") or published.get("quick_gelu"))
    model = _construct(config, name)
    try:
        path = Path(download_pretrained(published))
    except Exception as error:  # each transport fails in its own way
        spelling = "-gelu" if not config["quick_gelu"] else "-quickgelu"
        raise BackboneError(
            f"{name!r} must be downloaded once, which failed ({type(error).__name__}: "
            f"{str(error)[:200]}): connect to the network, or copy its file here and say "
            f"'{arch.removesuffix('-quickgelu')}{spelling}:FILE'"
        ) from error
    tensors = convert_state_dict(model, read_weights(path).tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    load_strictly(model, tensors, name)
    return _finish(name, model, config, published, _tokenizer(config, name, arch=arch))


def _open_file(arch: str, path: Path, name: str, plain: bool) -> Backbone:
    """A local file for a named architecture; nobody says which activation it was trained with."""
    weights = read_weights(path)
    config = open_clip.get_model_config(arch)
    openai = weights.openai or sha256(path) in _openai_digests()
    if plain and (openai or config.get("quick_gelu")):
        raise BackboneError(
            f"'-gelu' means plain GELU, but {str(path)!r} or {arch} needs QuickGELU: "
            f"say 'openai:{path}'"
        )
    if openai:
        config["quick_gelu"] = True
    elif not plain and not config.get("quick_gelu") and is_half_precision(weights.tensors):
        raise BackboneError(
            "OpenAI's weights need QuickGELU, and these may be OpenAI's, since every one is a "
            f"float16 number; got {name!r}: say '{arch}-quickgelu:{path}' or 'openai:{path}' if "
            f"they are, '{arch}-gelu:{path}' if they were trained with plain GELU"
        )
    model = _construct(config, name)
    load_strictly(model, weights.tensors, str(path))
    return _finish(name, model, config, {}, _tokenizer(config, name, arch=arch))


def _construct(config: Config, name: str) -> nn.Module:
    """An untrained model; the global random state is left as it was."""
    config = copy.deepcopy(config)
    try:
        vision, text = config["vision_cfg"], config["text_cfg"]
        # Never fetch the towers' own weights: ours follow.
        vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
        if "multimodal_cfg" in config:
            raise ValueError("a captioner has more than two towers")
        custom = config.pop("custom_text", False) or text.get("hf_model_name")
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = kind(**config)
    except Exception as error:  # open_clip checks little: a wrong value fails wherever it is used
        raise BackboneError(
            f"the architecture must be one that open_clip {open_clip.__version__} can build, "
            f"{name!r} is not ({type(error).__name__}: {str(error)[:200]}): use a plain CLIP"
        ) from error
    return model


def _finish(
    name: str,
    model: nn.Module,
    config: Config,
    preprocess: Mapping[str, Any],
    tokenizer: tuple[Tokenizer, str],
    merges: Path | None = None,
) -> Backbone:
    """Freeze, check and identify a model that has its weights."""
    model.float().eval().requires_grad_(False)
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    _check_activation(model, activation, name)
    transform = _preprocess(model, preprocess, name)
    facts = {
        "architecture": _canonical(config),
        "activation": activation,
        "preprocess": asdict(transform),
        "tokenizer": tokenizer[1],
    }
    fingerprint = digest(model.state_dict(), json.dumps(facts, sort_keys=True).encode())
    return Backbone(
        name,
        model,
        tokenizer[0],
        transform,
        activation,
        fingerprint,
        architecture=config,
        merges=merges,
    )


def _check_activation(model: nn.Module, expected: str, name: str) -> None:
    """The modules must really run what we say they run."""
    visual = model.get_submodule("visual")
    # timm's towers have an activation of their own, which the switch does not touch.
    skipped = set(visual.modules()) if isinstance(visual, TimmModel) else set()
    found = {
        "quick_gelu" if isinstance(module, QuickGELU) else "gelu"
        for module in model.modules()
        if isinstance(module, QuickGELU | nn.GELU) and module not in skipped
    }
    if found != {expected}:
        raise BackboneError(
            f"{name!r} must run {expected}, but its layers run {sorted(found) or 'neither'}: "
            "use a CLIP whose text tower is open_clip's own"
        )


def _preprocess(model: nn.Module, given: Mapping[str, Any], name: str) -> Preprocess:
    """open_clip's preprocessing fields (OpenAI's values by default) -> ours."""
    fields = asdict(PreprocessCfg()) | dict(given)
    size: Any = model.get_submodule("visual").image_size
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    problems = []
    if sides[0] != sides[1]:
        problems.append(f"image size {sides} is not square")
    if fields["interpolation"] not in get_args(Interpolation):
        problems.append(f"interpolation {fields['interpolation']!r} is unknown")
    if fields["resize_mode"] not in get_args(ResizeMode):
        problems.append(f"resize mode {fields['resize_mode']!r} is unknown")
    try:
        mean, std = (tuple(float(v) for v in fields[key]) for key in ("mean", "std"))
        if not (len(mean) == len(std) == 3 and min(std) > 0):
            problems.append(f"mean {mean} and std {std} are not three channels' each")
    except (TypeError, ValueError):
        problems.append("mean and std are not numbers")
    if problems:
        raise BackboneError(
            f"the preprocessing of {name!r} must be a square crop, bicubic or bilinear, shortest "
            f"or squash, but {'; '.join(problems)}: use another model, or mend its configuration"
        )
    return Preprocess(sides[0], mean, std, fields["interpolation"], fields["resize_mode"])  # type: ignore[arg-type]


def _tokenizer(
    config: Config, name: str, merges: Path | None = None, arch: str | None = None
) -> tuple[Tokenizer, str]:
    """The tokenizer and what identifies it. open_clip would take CLIP's for any vocabulary."""
    text = config["text_cfg"]
    length = int(text.get("context_length", 77))
    vocabulary = int(text.get("vocab_size", CLIP_VOCABULARY))
    try:
        if merges is not None:
            tokenizer = open_clip.SimpleTokenizer(str(merges), context_length=length)
            identity = sha256(merges)
        elif arch is not None:
            tokenizer, identity = open_clip.get_tokenizer(arch), arch
            if isinstance(tokenizer, open_clip.SimpleTokenizer):
                identity = "clip"
        else:
            tokenizer, identity = open_clip.SimpleTokenizer(context_length=length), "clip"
    except Exception as error:  # a damaged vocabulary, or one that must be downloaded
        raise BackboneError(
            f"the tokenizer of {name!r} must be readable, which failed ({type(error).__name__}: "
            f"{str(error)[:200]}): restore {MERGES_FILE}, or connect to the network"
        ) from error
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != vocabulary:
        raise BackboneError(
            f"the tokenizer's vocabulary must have the model's size {vocabulary}, got "
            f"{tokenizer.vocab_size} for {name!r}: put the model's {MERGES_FILE} into its folder"
        )
    return tokenizer, identity


def _openai_config(tensors: Mapping[str, Tensor], path: Path) -> Config:
    """The architecture of a state dict in OpenAI's layout, whose heads are 64 wide."""
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        return {
            "embed_dim": tensors["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": _openai_vision(tensors),
            "text_cfg": {
                "context_length": tensors["positional_embedding"].shape[0],
                "vocab_size": tensors["token_embedding.weight"].shape[0],
                "width": text_width,
                "heads": text_width // 64,
                "layers": _count(tensors, "transformer.resblocks."),
                "mlp_ratio": tensors["transformer.resblocks.0.mlp.c_fc.bias"].shape[0] / text_width,
            },
        }
    except (KeyError, IndexError) as error:
        raise BackboneError(
            f"'openai:FILE' needs a state dict in OpenAI's layout, {str(path)!r} lacks {error}: "
            "name its architecture instead, 'ARCH:FILE'"
        ) from error


def _openai_vision(tensors: Mapping[str, Tensor]) -> Config:
    if "visual.proj" not in tensors:
        grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
        return {
            "layers": [_count(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
            "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
            "patch_size": None,
            "image_size": 32 * grid,
        }
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    prefix = "visual.transformer.resblocks."
    return {
        "layers": _count(tensors, prefix),
        "width": width,
        "patch_size": patch,
        "image_size": patch * grid,
        "mlp_ratio": tensors[f"{prefix}0.mlp.c_fc.bias"].shape[0] / width,
    }


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in `names`."""
    return len(
        {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    )


def _canonical(config: Config) -> Config:
    """The configuration with every default written out, so that equal models compare equal."""
    vision = asdict(CLIPVisionCfg(**config["vision_cfg"]))
    text = asdict(CLIPTextCfg(**config["text_cfg"]))
    return config | {"vision_cfg": vision, "text_cfg": text, "quick_gelu": None}


def _openai_digests() -> set[str]:
    """SHA-256 of every file that OpenAI published: part of its address."""
    urls = [get_pretrained_cfg(arch, "openai").get("url", "") for arch in open_clip.list_models()]
    return {url.split("/")[-2] for url in urls if "openaipublic" in url}


def _unknown(name: str) -> str:
    # All hundred and fifty architectures would bury the one that was meant.
    near = difflib.get_close_matches(name, ["tiny", *open_clip.list_models()], n=3)
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    return (
        f"A backbone is 'tiny', an architecture of open_clip (ARCH, ARCH:TAG, ARCH:FILE), "
        f"'openai:FILE' or a model folder; there is no {name!r}.{hint}"
    )


def _is_file_name(text: str) -> bool:
    return "/" in text or "\\" in text or Path(text).suffix != "" or Path(text).exists()
