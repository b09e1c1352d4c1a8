"""The convolutional backbone: any of transformers', its last feature map taken, freezing said and done here.

transformers' own DETR freezes every weight of a transformers ResNet and replaces its batch norms, trained or not; so the
backbone is built by itself. Its names are those of ``DetrConvEncoder`` and ``RTDetrConvEncoder`` (``model.embedder``,
``model.encoder.stages``), so that either one's weights load.

Shape legend: B pictures, H x W pixels, C channels, h x w cells of the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.storage.errors import UserError


class Backbone(nn.Module):
    """Images ``[B, 3, H, W]`` to their feature map ``[B, C, h, w]``.

    Args:
        config: see :class:`~hoi_distill.stages.student.methods.vlm_hoi.model_config.MurenConfig`, as ``frozen_batch_norm`` and
            ``frozen_stages``.

    Raises:
        UserError: a backbone unknown to transformers, or parts to freeze that it does not have.
    """

    def __init__(self, config: Mapping[str, Any], *, frozen_batch_norm: bool, frozen_stages: int) -> None:
        super().__init__()
        from transformers import CONFIG_MAPPING, AutoBackbone

        record = dict(config)
        kind = record.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise UserError(f"backbone: model_type '{kind}' is not known to transformers; use resnet or rt_detr_resnet")
        self.model = AutoBackbone.from_config(CONFIG_MAPPING[kind].from_dict(record))
        self.channels: int = self.model.channels[-1]
        self.frozen_batch_norm = frozen_batch_norm
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d):  # the library's draw of RT-DETR's would fade to nothing
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d) and frozen_batch_norm:
                module.requires_grad_(requires_grad=False)
        for prefix in ("embedder", *(f"encoder.stages.{stage}" for stage in range(frozen_stages - 1)))[:frozen_stages]:
            try:
                self.model.get_submodule(prefix).requires_grad_(requires_grad=False)
            except AttributeError:
                raise UserError(f"frozen_stages: {frozen_stages}: backbone '{kind}' has no part '{prefix}'") from None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train()

    @override
    def train(self, mode: bool = True) -> Backbone:
        """Frozen batch norms keep their running statistics in training too."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    @override
    def forward(self, pixel_values: Tensor) -> Tensor:
        # Convolutions and pooling are faster with the channels innermost.
        return self.model(pixel_values.contiguous(memory_format=torch.channels_last)).feature_maps[-1]


def mask_of_map(pixel_mask: Tensor, feature_map: Tensor) -> Tensor:
    """Bool ``[B, h, w]``, the cells that lie in the picture, of bool ``[B, H, W]``: the nearest pixel decides (DETR)."""
    return F.interpolate(pixel_mask[:, None].float(), size=feature_map.shape[-2:])[:, 0].bool()
