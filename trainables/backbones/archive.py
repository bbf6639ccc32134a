"""Tensors of a TorchScript archive, read without running any of its code.

`torch.jit.load` compiles an archive and calls the `__setstate__` of its classes. Here its pickled
object tree is interpreted instead, by a reader that can build containers and tensors and calls
nothing: every class is a bare holder of its attributes, every function but the one that describes
a tensor is ignored.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_PICKLE = 64 << 20
"""Bytes of an object tree; CLIP's largest has a few hundred thousand."""

_MAX_MODULES = 100_000


class ArchiveError(ValueError):
    """The file is not an archive that can be read without running code."""


def check_zip(path: Path, ratio: float = 1.0) -> list[str]:
    """Names of the members of a zip file. Raises `ArchiveError` if they unpack to more than
    `ratio` times the file's size (plus 64 KiB), or if a name occurs twice."""
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
    names = [member.filename for member in members]
    unpacked, size = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > ratio * size + (1 << 16):
        raise ArchiveError(f"it would unpack from {size} to {unpacked} bytes")
    if len(set(names)) < len(names):
        raise ArchiveError("a member occurs twice")
    return names


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip that PyTorch would treat as a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(PurePosixPath(name).name == "constants.pkl" for name in file.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the archive's module, by name; raises `ArchiveError`, and what
    damaged zip files and pickles raise."""
    names = check_zip(path)
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ArchiveError("an archive holds one data.pkl")
    with zipfile.ZipFile(path) as file:
        archive = _Archive(file, roots[0])
        if archive.text("byteorder") not in ("", "little"):
            raise ArchiveError("its numbers are big-endian")
        return dict(archive.state(archive.tree(), ""))


@dataclass
class _Object:
    """An instance of a scripted class, or the result of a function that is not run."""

    kind: str
    attributes: Any = field(default_factory=dict)


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


_MARK = object()


class _Archive:
    def __init__(self, file: zipfile.ZipFile, root: str) -> None:
        self._file, self._root = file, root
        self._storages: dict[str, Tensor] = {}
        self._visits = 0

    def text(self, name: str) -> str:
        """A small member as text; empty if there is none."""
        try:
            return self._file.read(self._root + name).decode().strip()
        except KeyError:
            return ""

    def state(self, module: _Object, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers below `module`, as `state_dict` names them."""
        self._visits += 1
        if self._visits > _MAX_MODULES or not isinstance(module.attributes, dict):
            raise ArchiveError(f"{module.kind} restores itself by code or has too many parts")
        tensors = self._declared(module.kind)
        for name, value in module.attributes.items():
            if isinstance(value, Tensor) and name in tensors:
                yield f"{prefix}{name}", value
            elif isinstance(value, _Object) and value.kind.startswith("__torch__."):
                yield from self.state(value, f"{prefix}{name}.")

    def _declared(self, kind: str) -> frozenset[str]:
        """Names of a class's parameters and buffers, the only lines read of its source."""
        scope, _, name = kind.rpartition(".")
        text = self.text(f"code/{scope.replace('.', '/')}.py")
        body = re.search(rf"^class {re.escape(name)}\(Module\):\n((?:  .*\n)*)", text, re.M)
        lists = re.findall(r"^  __(?:parameters|buffers)__ = (.*)$", body[1] if body else "", re.M)
        return frozenset(re.findall(r'"([^"]+)"', " ".join(lists)))

    def tree(self) -> _Object:
        """The module at the root of `data.pkl`."""
        info = self._file.getinfo(f"{self._root}data.pkl")
        if info.file_size > _MAX_PICKLE:
            raise ArchiveError(f"its object tree has {info.file_size} bytes")
        found = self._interpret(self._file.read(info))
        if not isinstance(found, _Object):
            raise ArchiveError("it holds no module")
        return found

    def _interpret(self, content: bytes) -> Any:
        stack: list[Any] = []
        memo: dict[int, Any] = {}

        def pop_to_mark() -> list[Any]:
            place = len(stack) - 1 - stack[::-1].index(_MARK)
            items = stack[place + 1 :]
            del stack[place:]
            return items

        argument: Any
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "POP":
                    stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(pop_to_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "APPENDS":
                    items = pop_to_mark()
                    stack[-1].extend(items)
                case "APPEND":
                    stack[-2].append(stack.pop())
                case "SETITEMS":
                    items = pop_to_mark()
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(argument.replace(" ", "."))
                case "NEWOBJ":
                    stack[-2:] = [_Object(stack[-2])]
                case "BUILD":
                    state = stack.pop()
                    stack[-1].attributes = state
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(self._reduce(stack.pop(), arguments))
                case other:
                    raise ArchiveError(f"its object tree uses {other}")
        raise ArchiveError("its object tree has no end")

    def _storage(self, identity: Any) -> _Storage:
        kind, storage, key = identity[:3]
        name = str(storage).rpartition(".")[2]
        if kind != "storage" or name not in _DTYPES:
            raise ArchiveError(f"it holds a {name} of the kind {kind!r}")
        return _Storage(_DTYPES[name], str(key))

    def _reduce(self, function: str, arguments: tuple[Any, ...]) -> Any:
        if function != "torch._utils._rebuild_tensor_v2":
            return _Object(function)  # of typed lists and the like: no tensor of a state dict
        storage, offset, size, stride = arguments[:4]
        if storage.key not in self._storages:
            content = bytearray(self._file.read(f"{self._root}data/{storage.key}"))
            whole = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0)
            self._storages[storage.key] = whole
        flat = self._storages[storage.key].view(storage.dtype)
        if math.prod(size) > flat.numel():
            raise ArchiveError("a tensor is larger than its storage")
        return flat.as_strided(size, stride, offset)
