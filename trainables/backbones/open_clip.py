"""CLIP models through open_clip: the one file of the project that imports it.

The rule it keeps: weights trained with QuickGELU never run with plain GELU by accident, nor the
reverse. After loading, the modules themselves are checked.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from trainables.backbones.base import Backbone, BackboneError, Preprocess
from trainables.backbones.layout import MERGES_FILE
from trainables.backbones.light_import import complete_on_first_use, without_optional_packages
from trainables.backbones.weights import digest, load_strictly, sha256
from trainables.core.files import read_text
from trainables.images.resample import Interpolation, ResizeMode


def _provide_torchvision_operators() -> None:
    """Let `import torchvision` succeed if its compiled operators cannot be loaded.

    A CPU build of torch with a CUDA build of torchvision fails at import time: "operator
    torchvision::nms does not exist". This project calls none of those operators, so an empty
    module in place of the one that registers their shapes is enough.
    """
    if "torchvision" in sys.modules:
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018 - the attribute access is the probe
    except (AttributeError, RuntimeError):
        name = "torchvision._meta_registrations"
        sys.modules.setdefault(name, types.ModuleType(name))


_provide_torchvision_operators()

with without_optional_packages():
    import open_clip
    from open_clip import hf_model, timm_model
    from open_clip.convert import convert_state_dict
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, convert_to_custom_text_state_dict
    from open_clip.pretrained import (
        download_pretrained,
        download_pretrained_from_hf,
        get_pretrained_cfg,
    )
    from open_clip.timm_model import TimmModel
    from open_clip.tokenizer import HFTokenizer
    from open_clip.transform import PreprocessCfg
    from open_clip.transformer import QuickGELU

complete_on_first_use(timm_model, TimmModel)
complete_on_first_use(hf_model, HFTextEncoder)

__all__ = ["download_pretrained", "open_clip"]

CLIP_VOCABULARY = 49408
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
"""Any of them in a folder is a Hugging Face tokenizer."""
_SMALL = ("*.json", "*.txt", "*.model", "*.gz")  # configuration and tokenizer
_SCALES = (1e-2, 1e4)
"""Between which a CLIP's logit scale lies; CLIP's is 100."""

_T = TypeVar("_T")
Config = dict[str, Any]
Published = Mapping[str, Any]
"""open_clip's entry for published weights: address, preprocessing, activation."""
Tokenizer = Callable[[list[str]], Tensor]


def architecture(arch: str) -> Config:
    """open_clip's configuration of an architecture."""
    config: Config = open_clip.get_model_config(arch)
    return config


def published_weights(arch: str) -> dict[str, Published]:
    """Published weights of an architecture, by tag; the tag decides the activation."""
    always = bool(architecture(arch).get("quick_gelu"))
    entries = {
        tag: get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)
    }
    return {
        tag: entry | {"quick_gelu": bool(always or entry.get("quick_gelu"))}
        for tag, entry in entries.items()
    }


def has_both_activations(arch: str) -> bool:
    """Whether there are models of this architecture with GELU and with QuickGELU."""
    plain, known = arch.removesuffix("-quickgelu"), open_clip.list_models()
    tags = published_weights(arch).values()
    return {plain, f"{plain}-quickgelu"} <= {*known} or len({t["quick_gelu"] for t in tags}) > 1


def recognise(arch: str, path: Path) -> str:
    """The tag of a file whose digest is part of its published address; empty if there is none."""
    found = sha256(path)
    if found in openai_digests():
        return "openai"
    for tag, entry in published_weights(arch).items():
        address = Path(entry.get("url", ""))
        end = address.stem.rpartition("-")[2]
        if "mlfoundations" in str(address) and len(end) >= 8 and found.startswith(end):
            return tag
    return ""


def openai_digests() -> set[str]:
    """SHA-256 of every file that OpenAI published: part of its address."""
    urls = [get_pretrained_cfg(arch, "openai").get("url", "") for arch in open_clip.list_models()]
    return {url.split("/")[-2] for url in urls if "openaipublic" in url}


def download_repository(repository: str) -> Path:
    """The folder with a model of the Hugging Face hub, from the cache if it is there; raises in
    many ways."""
    try:
        folder = Path(
            snapshot_download(repository, allow_patterns=[*_SMALL], local_files_only=True)
        )
        if any(folder.glob("open_clip_*.safetensors")) or any(folder.glob("open_clip_*.bin")):
            return folder
    except (OSError, ValueError):
        pass
    download_pretrained_from_hf(repository)
    return Path(snapshot_download(repository, allow_patterns=[*_SMALL]))


def construct(config: Config, name: str, folder: Path | None = None) -> nn.Module:
    """An untrained model; the global random state is left as it was. Raises `BackboneError`.

    The configuration of a text tower of Hugging Face is read from its folder in `folder`, if there
    is one. Of a captioner (CoCa), the two contrastive towers are built, without the decoder.
    """
    config = copy.deepcopy(config)
    try:
        vision, text = config["vision_cfg"], config["text_cfg"]
        if tower := text.get("hf_model_name"):
            require_transformers(name)
            text["hf_model_name"] = str(_tower_folder(tower, name, folder))
        # Never fetch the towers' own weights: ours follow.
        vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
        custom = config.pop("custom_text", False) or text.get("hf_model_name")
        if config.pop("multimodal_cfg", None) is not None:
            vision["output_tokens"] = text["output_tokens"] = False
            custom = True
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = kind(**config)
    except BackboneError:
        raise
    except Exception as error:  # open_clip checks little: a wrong value fails wherever it is used
        raise BackboneError(
            f"the architecture must be one that open_clip {open_clip.__version__} can build, "
            f"{name!r} is not ({type(error).__name__}: {str(error)[:200]}): use a plain CLIP"
        ) from error
    return model


def build(
    name: str,
    config: Config,
    tensors: Mapping[str, Tensor],
    preprocess: Mapping[str, Any],
    tokenizer: tuple[Tokenizer, str],
    notices: tuple[str, ...] = (),
    merges: Path | None = None,
    folder: Path | None = None,
) -> Backbone:
    """A frozen backbone: construct, load, check and identify it. Raises `BackboneError`.

    A `{}` in `notices` is replaced by activation and preprocessing.
    """
    model = construct(config, name, folder)
    load_strictly(model, _converted(model, tensors, "multimodal_cfg" in config), name)
    model.float().eval().requires_grad_(False)
    scale = float(model.get_parameter("logit_scale").exp())
    if not _SCALES[0] <= scale <= _SCALES[1]:
        raise BackboneError(
            f"the logit scale must be between {_SCALES[0]:g} and {_SCALES[1]:g} (CLIP's is 100), "
            f"got {scale:g} in {name!r}: check the file's logit_scale, its logarithm"
        )
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    _check_activation(model, activation, name)
    transform = _preprocess(model, preprocess, name)
    if "multimodal_cfg" in config:
        config = {k: v for k, v in config.items() if k != "multimodal_cfg"} | {"custom_text": True}
        towers = ("vision_cfg", "text_cfg")
        config |= {tower: config[tower] | {"output_tokens": False} for tower in towers}
    facts = {
        "architecture": _canonical(config),
        "activation": activation,
        "preprocess": asdict(transform),
        "tokenizer": tokenizer[1],
    }
    fingerprint = digest(model.state_dict(), json.dumps(facts, sort_keys=True).encode())
    words = f"{'QuickGELU' if activation == 'quick_gelu' else 'plain GELU'}; {transform.describe()}"
    return Backbone(
        name,
        model,
        tokenizer[0],
        transform,
        activation,
        fingerprint,
        architecture=config,
        merges=merges,
        notices=tuple(notice.replace("{}", words) for notice in notices),
    )


def _converted(
    model: nn.Module, tensors: Mapping[str, Tensor], captioner: bool
) -> Mapping[str, Tensor]:
    """`tensors` by the names of this version of open_clip."""
    found: dict[str, Tensor] = convert_state_dict(model, dict(tensors))
    if "positional_embedding" in found and not hasattr(model, "positional_embedding"):
        found = convert_to_custom_text_state_dict(found)
    own = model.state_dict()
    if "logit_bias" in own and "logit_scale" in found:  # a CLIP's weights in a SigLIP: no bias
        found.setdefault("logit_bias", torch.zeros_like(found["logit_scale"]))
    unused = {"text.transformer.embeddings.position_ids"} - own.keys()  # of older transformers
    return {
        name: tensor
        for name, tensor in found.items()
        if name not in unused and not (captioner and name.startswith("text_decoder."))
    }


def _check_activation(model: nn.Module, expected: str, name: str) -> None:
    """The modules must really run what we say they run."""
    # Towers of timm and transformers choose their activation themselves.
    foreign = [m for m in model.modules() if isinstance(m, TimmModel | HFTextEncoder)]
    skipped = {inner for module in foreign for inner in module.modules()}
    found = {
        "quick_gelu" if isinstance(module, QuickGELU) else "gelu"
        for module in model.modules()
        if isinstance(module, QuickGELU | nn.GELU) and module not in skipped
    }
    if found != {expected} and not (foreign and not found):
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
    if fields["resize_mode"] == "longest" and fields["fill_color"] not in (0, (0, 0, 0)):
        problems.append(f"fill color {fields['fill_color']!r} is not black")
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    try:
        mean, std = (tuple(float(v) for v in fields[key]) for key in ("mean", "std"))
        if not (len(mean) == len(std) == 3 and min(std) > 0):
            problems.append(f"mean {mean} and std {std} are not three channels' each")
    except (TypeError, ValueError):
        problems.append("mean and std are not numbers")
    if problems:
        known = " or ".join(get_args(ResizeMode))
        raise BackboneError(
            f"the preprocessing of {name!r} must be a square crop, bicubic or bilinear, {known}, "
            f"but {'; '.join(problems)}: use another model, or correct its configuration"
        )
    return Preprocess(sides[0], mean, std, fields["interpolation"], fields["resize_mode"])  # type: ignore[arg-type]


def find_tokenizer(
    config: Config, name: str, folder: Path | None = None
) -> tuple[Tokenizer, str, Path | None]:
    """The tokenizer, what identifies it, and the file of its vocabulary if it is the model's own.

    In a `folder` the files beside the model come first. Raises `BackboneError`.
    """
    text = config.get("text_cfg")
    if not isinstance(text, dict):
        raise BackboneError(f"a model_cfg holds a text_cfg, {name!r} does not: check its file")
    length = int(text.get("context_length") or 77)
    vocabulary = int(text.get("vocab_size") or CLIP_VOCABULARY)
    merges = None if folder is None else folder / MERGES_FILE
    merges = merges if merges is not None and merges.is_file() else None
    try:
        if merges is not None:
            tokenizer = open_clip.SimpleTokenizer(str(merges), context_length=length)
            identity = sha256(merges)
        elif text.get("hf_tokenizer_name"):
            return (*_hf_tokenizer(text, length, name, folder), None)
        else:
            options = text.get("tokenizer_kwargs") or {}
            own = open_clip.SimpleTokenizer if options else _clip_tokenizer
            tokenizer = own(context_length=length, **options)
            identity = "clip"
    except BackboneError:
        raise
    except Exception as error:  # a damaged vocabulary
        raise BackboneError(
            f"the tokenizer of {name!r} must be readable, which failed ({type(error).__name__}: "
            f"{str(error)[:200]}): restore {MERGES_FILE}"
        ) from error
    if tokenizer.vocab_size != vocabulary:
        raise BackboneError(
            f"the tokenizer's vocabulary must have the model's size {vocabulary}, got "
            f"{tokenizer.vocab_size} for {name!r}: put the model's {MERGES_FILE} into its folder"
        )
    return tokenizer, identity, merges


@cache  # it takes as long as reading a small model
def _clip_tokenizer(context_length: int) -> Any:
    """CLIP's own tokenizer."""
    return open_clip.SimpleTokenizer(context_length=context_length)


def _hf_tokenizer(
    text: Mapping[str, Any], length: int, name: str, folder: Path | None
) -> tuple[Tokenizer, str]:
    """A Hugging Face tokenizer: of the folder, else of the cache, else downloaded."""
    require_transformers(name)
    options = dict(text.get("tokenizer_kwargs") or {}) | {"trust_remote_code": False}

    def read(source: Path) -> tuple[Any, Tensor]:
        tokenizer = HFTokenizer(
            str(source), length, tokenizer_mode=text.get("tokenizer_mode"), **options
        )
        return tokenizer, tokenizer(["a photo of a cat.", "", "Été, 2024: _Größe_ 猫"])

    beside = folder is not None and any((folder / file).is_file() for file in _TOKENIZER_FILES)
    source = str(folder if beside else text["hf_tokenizer_name"])
    remedy = (
        "put its files (tokenizer.json, tokenizer_config.json) into a folder with the model and "
        f"its open_clip_config.json, and use the folder as backbone instead of {name!r}"
    )
    tokenizer, sample = _use_files(source, read, beside, "tokenizer", remedy)
    if text.get("vocab_size") and int(sample.max()) >= int(text["vocab_size"]):
        raise BackboneError(
            f"token ids must be below the model's vocabulary size {text['vocab_size']}, the "
            f"tokenizer '{source}' of {name!r} gives {int(sample.max())}: use the model's own"
        )
    words = json.dumps(sorted(tokenizer.tokenizer.get_vocab().items())) + str(sample.tolist())
    return tokenizer, hashlib.sha256(words.encode()).hexdigest()


def _tower_folder(tower: str, name: str, folder: Path | None) -> Path:
    """The folder with the configuration of a text tower of Hugging Face."""

    def check(source: Path) -> Path:
        content = json.loads(read_text(source / "config.json"))
        if "auto_map" in content:
            raise ValueError("it contains code, which is never run")
        return source

    beside = folder is not None and (folder / tower).is_dir()
    source = str(folder / tower if folder is not None and beside else tower)
    remedy = f"put its config.json into the folder {tower}/ of the model's folder (for {name!r})"
    return _use_files(source, check, beside, "text tower", remedy)


def _use_files(
    source: str, use: Callable[[Path], _T], is_folder: bool, kind: str, remedy: str
) -> _T:
    """`use` on a folder, or on a repository of the hub: as it is in the cache, else downloaded."""
    for local in (True,) if is_folder else (True, False):
        try:
            if is_folder:
                return use(Path(source))
            found = snapshot_download(source, allow_patterns=[*_SMALL], local_files_only=local)
            return use(Path(found))
        except Exception as error:  # absent, damaged, or of a kind that transformers refuses
            failure = error
    raise BackboneError(
        f"the {kind} '{source}' must be readable, which failed ({type(failure).__name__}: "
        f"{' '.join(str(failure).split())[:200]}): connect to the network once, or {remedy}"
    ) from failure


def require_transformers(name: str) -> None:
    """Raises `BackboneError` if the extra `hf` is not installed."""
    if missing := [m for m in ("transformers", "tokenizers") if not importlib.util.find_spec(m)]:
        raise BackboneError(
            f"{name!r} has a tokenizer or a text tower of Hugging Face, which needs the package "
            f"{' and '.join(missing)}: pip install -e '.[hf]'"
        )


def _canonical(config: Config) -> Config:
    """The configuration with every default written out, so that equal models compare equal."""
    vision = asdict(CLIPVisionCfg(**config["vision_cfg"]))
    text = asdict(CLIPTextCfg(**config["text_cfg"]))
    return config | {"vision_cfg": vision, "text_cfg": text, "quick_gelu": None}
