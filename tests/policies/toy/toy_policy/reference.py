from torch import Tensor

from steerdec.policies.steered import Steered
from toy_policy.fields import GAIN, WARM


def steered(z: Tensor, h: float, floats: list[float]) -> Steered:
    return Steered(floats[WARM] + floats[GAIN] * h)
