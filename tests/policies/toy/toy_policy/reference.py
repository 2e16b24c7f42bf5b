from torch import Tensor

from toy_policy.fields import GAIN, WARM


def steered(z: Tensor, h: float, floats: list[float]) -> float:
    return floats[WARM] + floats[GAIN] * h
