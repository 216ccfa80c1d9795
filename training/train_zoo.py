"""Train a network of the zoo, from real images, and record its accuracy.

    python training/train_zoo.py resnet-digits
    python training/train_zoo.py resnet20-cifar10 --data FOLDER     # with train.tar and test.tar (class folders of JPEG)
    python training/train_zoo.py resnet20-cifar10 --data FOLDER --more --epochs 14 --lr 0.1     # a second cycle, from the shipped weights
    python training/train_zoo.py resnet20-cifar10 --data FOLDER --more --average --epochs 4 --lr 0.05    # and the mean of the cycles' ends

Writes src/dreamquant/zoo/NAME.safetensors and NAME.json (accuracy, and epochs and seconds of all cycles).
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor

from dreamquant.zoo import ENTRIES, SUPERCLASS_OF_CIFAR10

ZOO = Path(__file__).resolve().parent.parent / "src" / "dreamquant" / "zoo"


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 digits, as bytes; every fifth is held out."""
    bunch = load_digits()
    x = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    y = torch.from_numpy(bunch.target).long()
    held = torch.arange(len(x)) % 5 == 0
    return (x[~held], y[~held]), (x[held], y[held])


def tar(path: Path) -> tuple[Tensor, Tensor]:
    """All images of a tar of class folders, (N, C, H, W) bytes, and their classes."""
    pixels, names = [], []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and (stream := archive.extractfile(member)):
                pixels.append(np.array(Image.open(io.BytesIO(stream.read()))))
                names.append(member.name.split("/")[-2])
    classes = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor([classes[n] for n in names])


def augmented(x: Tensor, pad: int) -> Tensor:
    """Every image shifted by up to `pad` pixels and, in colour, mirrored half of the time."""
    n, _, h, w = x.shape
    big = F.pad(x, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, n))
    rows = top[:, None] + torch.arange(h)
    cols = left[:, None] + torch.arange(w)
    if x.shape[1] == 3:
        mirrored = torch.rand(n) < 0.5
        cols = torch.where(mirrored[:, None], cols.flip(1), cols)
    return big[torch.arange(n)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def accuracy(net: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        right = sum(int((net(a.float()).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return right / len(y)


def averaged(net: torch.nn.Module, start: dict[str, Tensor], share: float, batches: Iterable[Tensor]) -> None:
    """Weights go `share` of the way from `start` to where they are; BatchNorm is measured anew on the batches.

    With a share of 1/n after n cycles they are the mean of the ends of all (Izmailov et al. 2018).
    """
    end = net.state_dict()
    net.load_state_dict({name: (start[name] + share * (value - start[name])).to(value.dtype) for name, value in end.items()})
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # plain mean over batches
    net.train()
    with torch.no_grad():
        for batch in batches:
            net(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ENTRIES))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--small", type=int, default=0, help="epochs at the start that see 24x24 crops: nearly half the cost")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay")
    parser.add_argument("--more", action="store_true", help="go on from the shipped weights, at a rate that rises and falls again")
    parser.add_argument("--average", action="store_true", help="with --more: keep the mean of the ends of these cycles")
    args = parser.parse_args()
    entry = ENTRIES[args.name]
    torch.manual_seed(0)
    (x, y), (test_x, test_y) = digits() if "digits" in args.name else (tar(args.data / "train.tar"), tar(args.data / "test.tar"))
    if entry.classes == 2:
        y, test_y = SUPERCLASS_OF_CIFAR10[y], SUPERCLASS_OF_CIFAR10[test_y]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (entry.mean, entry.std))
    normalise = lambda p: (p.float() / 255 - mean) / std  # noqa: E731
    shown = lambda pick: normalise(augmented(x[pick], 4 if x.shape[-1] == 32 else 1))  # noqa: E731
    net = entry.build().to(memory_format=torch.channels_last)
    before = {"epochs": 0, "seconds": 0}
    if args.average and not args.more:
        parser.error("--average needs --more: it averages with the shipped weights")
    if args.more:
        net.load_state_dict(shipped := load_file(ZOO / f"{args.name}.safetensors"))
        before = json.loads((ZOO / f"{args.name}.json").read_text(encoding="utf-8"))
    batch = 128
    steps = args.epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9, weight_decay=args.decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.2)
    start = time.time()
    for epoch in range(args.epochs):
        net.train()
        for pick in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            images = shown(pick)
            if epoch < args.small:
                images = images[:, :, 4:28, 4:28]
            loss = F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), y[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{args.epochs} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True)
    if args.average:
        # images as in training: on plain ones, without shifts, accuracy on test.tar falls by two points
        averaged(net, shipped, 1 / (cycles := before.get("averaged", 1) + 1), (shown(pick) for pick in torch.randperm(len(x)).split(500)))
    top1 = accuracy(net, normalise(test_x), test_y)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, ZOO / f"{args.name}.safetensors")
    seconds = before["seconds"] + round(time.time() - start)
    note = {"top1": top1, "test_images": len(test_y), "epochs": before["epochs"] + args.epochs, "seconds": seconds}
    if args.average:
        note["averaged"] = cycles
    (ZOO / f"{args.name}.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
    print(note)


if __name__ == "__main__":
    main()
