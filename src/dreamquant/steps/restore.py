"""RestoreMoments: give quantized weights the mean and the size they had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.ranges import over
from dreamquant.quant.student import Student
from dreamquant.run import Run


@dataclass(frozen=True)
class RestoreMoments:
    """ACIQ's correction of weights (Banner et al., NeurIPS 2019): what one grid spans, an output channel or the tensor,
    gets back the size and the mean of the teacher's weights. Codes stay as they are. For students not trained yet.

    The size goes into the scale, exactly: the `norm` around the mean, as the paper has it, or (ours) the `gain`, the share
    of the teacher's weights that the quantized ones hold, which least squared error leaves below one. The mean goes into
    the zero point, which is whole, so an error of up to half a step stays, and with symmetric formats all of it; the paper
    shifts by fractions. It is not moved into a bias, which could stand for it only if inputs were constant: CorrectBias
    does so in the mean over images, and RoundByFlips before this step leaves next to nothing of it.
    """

    size: Literal["norm", "gain"] = "norm"

    def __post_init__(self) -> None:
        if self.size not in ("norm", "gain"):
            raise ValueError(f"size={self.size!r}: choose 'norm' or 'gain'")

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        for name, layer in student.layers().items():
            weight, q, wanted = layer.weight.detach(), layer.quantizer, teacher.net.get_parameter(f"{name}.weight").detach()
            axes = over(weight, q.format)
            (scale, zero), codes = q.grid(weight), q.codes(weight)
            have = (codes - zero) * scale
            a, b = (v - v.mean(axes, keepdim=True) for v in (wanted, have))
            aa, ab, bb = (product.sum(axes, keepdim=True).view(scale.shape) for product in (a * a, a * b, b * b))
            stretch = (aa / bb).sqrt() if self.size == "norm" else aa / ab
            scale = scale * torch.where((aa > 0) & (ab > 0), stretch, 1.0)
            if not q.format.symmetric:
                missing = (wanted - (codes - zero) * scale).mean(axes, keepdim=True).view(scale.shape)
                zero = (zero - torch.round(missing / scale)).clamp(q.format.low, q.format.high)
            weight.copy_((codes - zero) * scale)
            q.fix(scale, zero)
