"""Labelled images of folders, tars and arrays: the only place that opens real images."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF")  # by content: no other decoder runs, whatever a file is called
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
LARGEST_FILE = 64 << 20  # bytes
LARGEST_IMAGE = 100_000_000  # pixels
SHOWN = 4  # files named in a message
DAMAGED = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)  # what reading a broken archive raises
CROPPED_FROM = 96  # images of at least this side are resized to 256/224 of it and cropped, as ImageNet's are
PIXELS_AT_ONCE = 1 << 18  # of one batch, 250 images at most


class Network(Protocol):
    """A Model or QuantizedModel: normalised images (N, C, H, W) -> logits, and the facts of its input."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def classes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LabelledImages:
    """Real images and their classes, read when they are needed. `unreadable` names the files that cannot be read; `checksum` is
    of all contents; `folders` is the number of class folders, empty ones too, where those in sorted order are the classes."""

    source: str
    labels: tuple[int, ...]
    read: Callable[[int], Image.Image] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    unreadable: tuple[str, ...] = ()
    checksum: int = 0
    folders: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """A hash of names, labels and contents, which tells other data of the same path."""
        return hashlib.sha256(repr((self.names, self.labels, self.checksum)).encode()).hexdigest()[:16]

    @classmethod
    def open(cls, path: str | Path) -> LabelledImages:
        """A folder or tar of class sub-folders (classes sorted by name) or of INDEX.jpg, or an npz with x (N, H, W, C) and y.

        Every image is opened once. Raises ValueError where there is nothing, or nothing that can be read.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"no evaluation data at {path}")
        if path.suffix == ".npz":
            return _of_arrays(path)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if not _hidden(p.relative_to(path)))
            files = [p for p in inside if p.is_file() or p.is_symlink()]
            folders = [p.relative_to(path).as_posix() for p in inside if p.is_dir()]
            return _of_files(str(path), [p.relative_to(path).as_posix() for p in files], folders, lambda i: _bytes_of(files[i]))
        return _of_tar(path)

    def check(self, network: Network) -> None:
        """ValueError for a network that takes no images, or for labels of other classes than its own."""
        if network.shape[0] not in (1, 3):
            raise ValueError(
                f"the network takes {network.shape[0]} channels and images have 1 or 3: it can be quantized without --eval, not evaluated"
            )
        if self.folders not in (None, network.classes):
            raise ValueError(
                f"{self.source} has {self.folders} class folders and the network {network.classes} classes; a folder's class is its place "
                "among all in sorted order: make one folder a class, empty where there are no images, or give an npz with x and y"
            )
        if self.labels and max(self.labels) >= network.classes:
            raise ValueError(f"{self.source} has class {max(self.labels)}; the network knows 0 to {network.classes - 1}")

    def batches(self, network: Network, size: int | None = None, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images as `network` takes them, (n, C, H, W), and labels (n,); larger images in smaller batches."""
        size = size or max(8, min(250, PIXELS_AT_ONCE // (network.shape[1] * network.shape[2])))
        self.check(network)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (network.mean, network.std))
        count = min(len(self), limit or len(self))
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            pixels = torch.stack([_fitted(self.read(number), network.shape) for number in numbers])
            yield (pixels.float() / 255 - mean) / std, torch.tensor([self.labels[number] for number in numbers])


def _hidden(path: PurePath) -> bool:
    """Whether a file is hidden, or lies in a hidden folder, as copies in .ipynb_checkpoints do."""
    return any(part.startswith(".") and part != ".." for part in path.parts)


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError("larger than 64 MiB")
    return path.read_bytes()


def _decoded(data: bytes) -> Image.Image:
    """An image decoded whole, of bounded size. OSError where it is none."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > LARGEST_IMAGE:
            raise ValueError("more than 100 million pixels")
        image.load()
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert() would make all above 255 white
        if image.mode in ("I", "F"):
            raise ValueError("pixels of more than 8 bits, of which it is not known what is white")
    except UnidentifiedImageError:
        raise OSError("not an image of a known format") from None
    except Exception as error:  # decoders raise whatever the damage leads them to
        raise OSError(str(error)) from None
    return image


def _first_line(error: BaseException) -> str:
    """What an error says, without the list of attempts that follows it."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")


def _listed(path: Path) -> tuple[tarfile.TarFile, list[tarfile.TarInfo]]:
    """An open archive and its members. ValueError where it is none, or does not end as an archive does: with a block of zeros."""
    try:
        archive = tarfile.open(path)  # noqa: SIM115 (stays open as long as images are read)
        members = archive.getmembers()
        stream = archive.fileobj
        assert stream is not None
        stream.seek(archive.offset)  # where tarfile stopped, as it does without a word at half a header or none
        end = stream.read(tarfile.BLOCKSIZE)
    except DAMAGED as error:
        raise ValueError(f"{path} is no folder, tar or npz of images ({_first_line(error)})") from None
    if end != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{path} is cut off or damaged after {sum(m.isfile() for m in members)} files; fetch it again")
    return archive, members


def _of_tar(path: Path) -> LabelledImages:
    """Read in memory: nothing is unpacked, so no member can escape."""
    archive, listed = _listed(path)
    inside = [m for m in listed if not _hidden(PurePosixPath(m.name))]
    members = [m for m in inside if not m.isdir()]

    def data(number: int) -> bytes:
        member = members[number]
        if not member.isfile():
            raise OSError("a link or device, which is not followed")
        if member.size > LARGEST_FILE:
            raise ValueError("larger than 64 MiB")
        stream = archive.extractfile(member)
        if stream is None:
            raise OSError("not a file")
        return stream.read()

    return _of_files(str(path), [m.name for m in members], [m.name for m in inside if m.isdir()], data)


def _order(parents: list[PurePosixPath], folders: list[str]) -> dict[str, int]:
    """The number of each class: a folder without images is a class as well, or those after it would be misnumbered."""
    level = {parent.parent for parent in parents}
    empty = {f.name for f in map(PurePosixPath, folders) if f.parent in level and f.name and not f.name.startswith("__")}
    return {name: number for number, name in enumerate(sorted({parent.name for parent in parents} | empty))}


def _of_files(source: str, names: list[str], folders: list[str], data: Callable[[int], bytes]) -> LabelledImages:
    inside = [number for number, name in enumerate(names) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not inside:
        raise ValueError(f"{source} holds no images; give class sub-folders, or files named INDEX.jpg")
    parents = [PurePosixPath(names[number]).parent for number in inside]
    stems = [PurePosixPath(names[number]).stem for number in inside]
    order = _order(parents, folders)
    indexed = all(stem.isdecimal() for stem in stems) and len(set(parents)) == 1 and (not parents[0].name or len(order) == 1)
    if indexed:
        labels = [int(stem) for stem in stems]
    elif all(parent.name for parent in parents):
        labels = [order[parent.name] for parent in parents]
    else:
        odd = next(names[number] for number, parent in zip(inside, parents, strict=True) if not parent.name)
        raise ValueError(f"{source}: {odd} is in no class sub-folder and not named INDEX.jpg, so its class is not known")
    good, unreadable, reasons, checksum = [], [], [], 0
    for place, number in enumerate(inside):
        try:
            content = data(number)
            _decoded(content).close()
            good.append(place)
            checksum = zlib.crc32(content, checksum)
        except (*DAMAGED, ValueError) as error:
            unreadable.append(names[number])
            reasons.append(_first_line(error))
    if not good:
        raise ValueError(f"{source}: none of {len(inside)} images can be read, {', '.join(unreadable[:SHOWN])} first ({reasons[0]})")
    kept = [inside[place] for place in good]
    return LabelledImages(
        source,
        tuple(labels[place] for place in good),
        lambda i: _decoded(data(kept[i])),
        tuple(names[number] for number in kept),
        tuple(unreadable),
        checksum,
        None if indexed else len(order),
    )


def _of_arrays(path: Path) -> LabelledImages:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except Exception as error:  # zipfile, zlib and numpy raise whatever the damage leads them to
        raise ValueError(f"{path} is no npz with x (N, H, W, C) uint8 and y (N,): {_first_line(error)}") from None
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or y.shape != (len(x),) or not len(x):
        raise ValueError(f"{path}: x is {x.dtype} {x.shape} and y {y.shape}; wanted uint8 (N, H, W, 1 or 3) and (N,)")
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(f"{path}: y holds {y.dtype} from {y.min()}; wanted class numbers from 0")
    squeezed = x[..., 0] if x.shape[3] == 1 else x
    names = tuple(f"{path.name}[{number}]" for number in range(len(x)))
    return LabelledImages(
        str(path), tuple(int(v) for v in y), lambda number: Image.fromarray(squeezed[number]), names, (), zlib.crc32(x.tobytes())
    )


def _fitted(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """Bytes (C, H, W) of the shape a network takes: an image of another size is resized and its middle cropped."""
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if min(height, width) >= CROPPED_FROM:
            margin = (round(width * 256 / 224), round(height * 256 / 224))
            image = ImageOps.fit(image, margin, Image.Resampling.BILINEAR)
            left, top = (margin[0] - width) // 2, (margin[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        else:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)
