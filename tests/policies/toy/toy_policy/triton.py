import triton
import triton.language as tl

from steerdec.softmax.triton import no_floor
from steerdec.steering import encoding
from toy_policy import fields

_REQUEST_T, _WARM, _GAIN = (tl.constexpr(c) for c in (encoding.REQUEST_T, fields.WARM, fields.GAIN))


@triton.jit
def steered(row_ptr, top, h, f_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    temperature = tl.load(f_ptr + _WARM).to(tl.float64) + tl.load(f_ptr + _GAIN).to(tl.float64) * h
    return temperature, (tl.load(f_ptr + _REQUEST_T).to(tl.float64) / temperature).to(tl.float32), no_floor()
