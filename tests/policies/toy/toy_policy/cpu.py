from typing import Any

import numpy as np

from steerdec.softmax.cpu import NO_FLOOR, jit
from steerdec.steering.encoding import REQUEST_T
from toy_policy.fields import GAIN, WARM


@jit
def steered(z: Any, top: Any, h: Any, f: Any) -> Any:
    temperature = np.float64(f[WARM]) + np.float64(f[GAIN]) * h
    return temperature, np.float32(np.float64(f[REQUEST_T]) / temperature), NO_FLOOR
