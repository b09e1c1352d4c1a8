"""Components of the training loop: each restores what it saved, and says what went wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hoi_distill.stages.student.training.components import (
    Components,
    Ema,
    FiniteCheck,
    LossScale,
    StepResult,
    named_images,
)
from hoi_distill.stages.student.training.metrics import NonFiniteLoss
from tests.fixtures.toy_student import Toy

CPU = torch.device("cpu")


class Fp16:
    """The part of an accelerator that knows the loss scale."""

    def __init__(self, scale: float = 1024.0) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)


class FullPrecision:
    scaler = None


def result(loss: float, norm: float) -> StepResult:
    return StepResult(6, torch.tensor(loss), {"loss/pairs": torch.tensor(0.5)}, torch.tensor(norm))


def test_the_loss_scale_is_part_of_the_state():
    saved, resumed = Fp16(), Fp16()
    saved.scaler.load_state_dict({**saved.scaler.state_dict(), "scale": 64.0, "_growth_tracker": 7})
    LossScale(resumed).load_state_dict(LossScale(saved).state_dict())
    assert resumed.scaler.state_dict() == saved.scaler.state_dict()
    assert LossScale(resumed).now(torch.tensor(3.0)).item() == 64.0


def test_in_full_precision_there_is_no_loss_scale():
    scale = LossScale(FullPrecision())
    scale.load_state_dict({})
    assert scale.state_dict() == {}
    assert scale.now(torch.tensor(3.0)).item() == 0.0


def test_an_average_moves_towards_the_weights_and_is_restored():
    network = nn.Linear(2, 1, bias=False)
    nn.init.ones_(network.weight)
    average, without = Ema(network, 0.75, CPU), Ema(network, 0.0, CPU)
    nn.init.constant_(network.weight, 5.0)
    for ema in (average, without):
        ema.after_step(network)
    assert average.state_dict()["weight"].tolist() == [[2.0, 2.0]]
    assert without.state_dict() == {}
    resumed = Ema(network, 0.75, CPU)
    resumed.load_state_dict(average.state_dict())
    resumed.copy_to(network)
    without.copy_to(network)
    assert network.weight.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_training(loss, norm):
    check = FiniteCheck(FullPrecision(), lambda network, number: f"in the batch of step {number}")
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, float("nan"))
    for finite in (result(1.0, 1.0), result(loss, norm), StepResult(7, torch.tensor(loss), {}, torch.tensor(norm))):
        check.before_step(network, finite)
    with pytest.raises(
        NonFiniteLoss, match=r"^step 7: loss .*, loss/pairs 0\.5, gradient norm .*; in the batch of step 6$"
    ):
        check.settle(network)
    assert torch.isfinite(network.weight).all(), "what is not finite in a description comes of the batch"


def test_an_overflow_of_half_precision_is_left_to_the_loss_scale():
    check = FiniteCheck(Fp16(), lambda network, number: "", log_norm=True)
    check.before_step(nn.Identity(), result(1.0, float("inf")))
    check.settle(nn.Identity())
    assert list(check.log_values()) == ["gradient_norm"]
    for scale, loss in ((1024.0, float("nan")), (1.0, 1.0)):
        check = FiniteCheck(Fp16(scale), lambda network, number: "")
        check.before_step(nn.Identity(), result(loss, float("inf")))
        with pytest.raises(NonFiniteLoss):
            check.settle(nn.Identity())


def test_an_error_names_eight_images_at_most():
    data = Toy(12, 0).training_set(4)
    assert named_images("images", [3], data) == "images rows [3], image ids ['image 3']"
    assert named_images("images", range(10), data).endswith("'image 7'] and 2 more")


def test_components_as_one_keep_their_states_apart():
    network = nn.Linear(2, 1, bias=False)
    check = FiniteCheck(FullPrecision(), lambda network, number: "", log_norm=True)
    several = Components(LossScale(Fp16()), Ema(network, 0.75, CPU), check)
    several.before_step(network, result(1.0, 2.0))
    several.after_step(network)
    several.settle(network)
    assert {name: value.item() for name, value in several.log_values().items()} == {"gradient_norm": 2.0}
    assert set(several.state_dict()) == {"scaler.scale", "scaler.steps", "ema.weight"}
    resumed = Ema(network, 0.75, CPU)
    Components(resumed).load_state_dict({"ema.weight": torch.full((1, 2), 7.0), "scaler.scale": torch.tensor(1.0)})
    assert resumed.weights["weight"].tolist() == [[7.0, 7.0]]
