"""Image files of every kind, valid and broken."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainables.data.base import DataError
from trainables.data.image_files import ImageFiles
from trainables.images.decode import image_formats, image_suffixes


def read(file: Path) -> Tensor:
    return ImageFiles(file.parent, (file.name,)).read(0)


def gradient(width: int = 6, height: int = 4) -> np.ndarray:
    """uint8 [h, w, 3], every pixel different."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 40, y * 60, x * y * 10], -1).astype(np.uint8)


LOSSLESS = (
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".apng",
    ".jp2",
    ".qoi",
    ".tga",
    ".dib",
)
LOSSY = (".jpg", ".jpeg", ".gif", ".JPEG", ".jfif", ".avif")


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_are_read_pixel_by_pixel(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    Image.fromarray(gradient()).save(file, **({"lossless": True} if suffix == ".webp" else {}))
    found = read(file)
    assert found.dtype == torch.uint8
    assert found.shape == (3, 4, 6)
    assert found.is_contiguous()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), gradient())


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_are_read_as_pillow_decodes_them(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    Image.fromarray(gradient()).save(file)
    with Image.open(file) as image:
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(read(file).permute(1, 2, 0).numpy(), expected)


def test_every_mode_becomes_rgb_as_the_fields_loaders_do(tmp_path: Path) -> None:
    colour = Image.fromarray(gradient())
    for mode in ("L", "LA", "P", "RGBA", "1", "CMYK"):
        file = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        colour.convert(mode).save(file)
        with Image.open(file) as image:
            expected = np.array(image.convert("RGB"))
        assert np.array_equal(read(file).permute(1, 2, 0).numpy(), expected), mode


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "PA", "RGBX"])
def test_modes_of_tiff_become_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    source = Image.fromarray(gradient())
    (source.convert("P") if mode == "PA" else source).convert(mode).save(file)
    with Image.open(file) as image:
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(read(file).permute(1, 2, 0).numpy(), expected)


DEEP = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)


def deep(file: Path) -> None:
    if file.suffix == ".pgm":
        file.write_bytes(b"P5 6 4 65535\n" + DEEP.astype(">u2").tobytes())
    else:
        Image.fromarray(DEEP).save(file)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_16_bits_are_scaled_to_8(suffix: str, tmp_path: Path) -> None:
    deep(tmp_path / f"a{suffix}")
    found = read(tmp_path / f"a{suffix}")
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])
    assert np.abs(found[0].numpy() - DEEP / 257).max() <= 0.5


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [(DEEP.astype(np.float32), "floating-point"), (DEEP.astype(np.int32), "32-bit integers")],
)
def test_pixels_without_a_defined_white_are_refused(
    pixels: np.ndarray, kind: str, tmp_path: Path
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    message = refused(tmp_path / "a.tif")
    assert kind in message
    assert "Convert it to 8 or 16 bits" in message


def test_every_format_of_pillow_is_read_that_needs_no_other_program() -> None:
    assert {".jfif", ".avif", ".jp2", ".webp", ".tga", ".pbm"} <= image_suffixes()
    assert not {".eps", ".ps", ".wmf", ".pdf", ".txt", ".heic"} & image_suffixes()
    assert list(image_formats())[:2] == ["JPEG", "PNG"]


def test_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    palette = Image.fromarray(gradient()).convert("P")
    palette.save(file, transparency=bytes(range(0, 250, 10)))
    expected = np.array(palette.convert("RGB"))
    assert np.array_equal(read(file).permute(1, 2, 0).numpy(), expected)


def test_exif_does_not_turn_an_image(tmp_path: Path) -> None:
    image, file = Image.fromarray(gradient()), tmp_path / "a.png"
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(file, exif=exif)
    assert read(file).shape == (3, 4, 6)


def test_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(gradient(2, 2)[1:, 1:]).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").flatten().tolist() == [40, 60, 10]


def test_a_png_that_is_called_jpeg(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    assert read(tmp_path / "a.JPEG").shape == (3, 4, 6)


# --- broken files --------------------------------------------------------------------------------


def refused(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(file)
    text = str(caught.value)
    assert f"'{file}'" in text
    assert "--skip-unreadable" in text
    assert "\n" not in text
    return text


def test_a_missing_file(tmp_path: Path) -> None:
    assert "it is missing" in refused(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"", b"GIF", b"<html>not found</html>", b"\x00" * 500])
def test_no_image_at_all(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert "JPEG" in refused(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [s for s in (*LOSSLESS, *LOSSY) if s != ".tga"])
def test_a_truncated_file(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = tmp_path / f"a{suffix}"
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    for kept in (len(whole) // 2, 12):
        file.write_bytes(whole[:kept])
        refused(file)


def test_damage_in_the_middle_never_raises_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".tif", ".gif", ".bmp", ".webp", ".ppm"):
        file = tmp_path / f"a{suffix}"
        Image.fromarray(gradient(40, 30)).save(file)
        whole = bytearray(file.read_bytes())
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                assert read(file).shape[0] == 3
            except DataError:
                continue


def test_a_decompression_bomb(tmp_path: Path) -> None:
    """A few bytes that claim to be an image of 100 million or 900 million pixels."""
    for side in (10_000, 30_000):
        body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
        data = b"IDAT" + zlib.compress(b"")
        rest = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + rest)
        message = refused(tmp_path / "a.png")
        assert f"({side**2} pixels) exceeds limit" in message
        assert "Scale it down" in message


def make_special(path: Path, kind: str) -> None:
    """Something that is no regular file."""
    match kind:
        case "a folder":
            path.mkdir()
        case "a named pipe":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "a symbolic link that leads to itself":
            path.symlink_to(path)
        case _:
            path.symlink_to("/dev/zero")


SPECIAL = (
    *("a folder", "a named pipe", "a socket", "a device"),
    "a symbolic link that leads to itself",
)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.timeout(10)
def test_something_else_in_an_images_place(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        file = Path(folder) / "a.jpg"
        make_special(file, kind)
        assert f"it is {kind}" in refused(file)
        with pytest.raises(DataError, match=f"it is {kind}"):
            ImageFiles(file.parent, (file.name,)).content()


def test_threads_neither_warn_nor_lose_the_filters_of_others(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(gradient()).convert("P").save(file, transparency=bytes(20))
    before, failed = list(warnings.filters), []

    def work() -> None:
        try:
            for _ in range(50):
                read(file)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(warnings.filters) == before


# --- rows ----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    names = ("b/1.png", "a/1.png", "c.png")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(gradient(number + 1)).save(tmp_path / name)
    return ImageFiles(tmp_path, names)


def test_names_and_rows(files: ImageFiles) -> None:
    assert len(files) == 3
    assert files.name(1) == "a/1.png"
    part = files.take([2, 0])
    assert [part.name(i) for i in range(2)] == ["c.png", "b/1.png"]
    assert [part.read(i).shape[2] for i in range(2)] == [3, 1]
    assert files.take([]).paths == ()


def test_an_absolute_path_stands_for_itself(files: ImageFiles, tmp_path: Path) -> None:
    assert torch.equal(
        ImageFiles(Path("/nowhere"), (str(tmp_path / "c.png"),)).read(0), files.read(2)
    )


def test_content_sees_what_the_pixels_depend_on(files: ImageFiles) -> None:
    first = files.content()
    assert files.content() == first
    assert files.take([0, 1]).content() != first
    assert files.take([1, 0, 2]).content() != first
    file = files.root / "c.png"
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    touched = files.content()
    assert touched != first
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files.content() == first
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files.content() != first


def test_two_trees_with_the_same_sizes_and_times_differ(files: ImageFiles, tmp_path: Path) -> None:
    shutil.copytree(tmp_path, tmp_path.parent / "copy", copy_function=shutil.copy2)
    assert ImageFiles(tmp_path.parent / "copy", files.paths).content() != files.content()
    link = tmp_path.parent / "link"
    link.symlink_to(tmp_path)
    assert ImageFiles(link, files.paths).content() == files.content()


def test_content_of_a_missing_file(files: ImageFiles) -> None:
    (files.root / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"a/1\.png' is not \(it is missing\)"):
        files.content()
