"""DETR-DC5: DETR with a dilated last stage, which transformers' ResNet lacks."""

from __future__ import annotations

from torch import nn
from transformers import DetrConfig, DetrForObjectDetection


class DilatedDetr(DetrForObjectDetection):
    """DETR whose backbone's last stage keeps the resolution of the one before it (Carion et al. 2020, section 4)."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        dilate(self.model.backbone.model.encoder.stages[-1])


def dilate(stage: nn.Module) -> None:
    """Take a ResNet stage's stride away and let its later blocks look twice as far instead.

    The answer on every second row and column stays what it was.

    Args:
        stage: transformers' ``ResNetStage`` of bottlenecks, changed in place. Its weights keep names and shapes.
    """
    for number, block in enumerate(stage.get_submodule("layers").children()):
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if number and module.kernel_size == (3, 3):
                    module.dilation = module.padding = (2, 2)
