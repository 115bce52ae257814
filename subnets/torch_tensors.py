"""torch.Tensor as a message: import this module, then name the type in a servicer's methods.

    from subnets import torch_tensors  # registers the adapter

    class StageServicer(Servicer):
        @method(max_request_bytes=16 << 20, max_response_bytes=16 << 20)
        async def rpc_forward(self, hidden: torch.Tensor, ctx: RpcContext) -> torch.Tensor: ...

    await stub.rpc_forward(coded(hidden, Codec.BF16))

Tensors travel as in mesh.rpc.tensor (no pickle), so numpy arrays and torch tensors understand each other; bfloat16
keeps its dtype and its bits. What comes is on the CPU, without gradient, in memory of its own that may be written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from mesh.errors import LocalProtocolError
from mesh.rpc.adapters import register, uncoded
from mesh.rpc.tensor import pack_tensor, unpack_tensor


class TorchAdapter:
    """The adapter of torch.Tensor (mesh.rpc.adapters.Adapter).

    A contiguous tensor on the CPU goes out RAW without a copy, and may still wait to be sent when `send` or the method
    has returned: whoever goes on changing it (weights in training) sends a clone, or a codec. Gradients, device and
    subclass (Parameter) are not sent."""

    type: type[Any] = torch.Tensor

    def accepts(self, value: object) -> bool:
        """See Adapter."""
        return isinstance(uncoded(value)[0], torch.Tensor)

    def pack(self, value: Any) -> Sequence[bytes | memoryview]:
        """See Adapter. Raises LocalProtocolError for what is no plain array (sparse, meta) or whose dtype,
        rank or values its codec does not take."""
        given, codec = uncoded(value)
        if given.layout is not torch.strided or given.is_meta:
            raise LocalProtocolError("a sparse or meta tensor is not sent: make it dense first")
        tensor = given.detach().cpu().resolve_conj().resolve_neg()
        if tensor.dtype is torch.bfloat16:
            return pack_tensor(tensor.contiguous().view(torch.int16).numpy().view("uint16"), codec, dtype="bfloat16")
        try:
            array = tensor.numpy()
        except (TypeError, RuntimeError) as error:
            raise LocalProtocolError(f"a tensor of {tensor.dtype} is not sent") from error
        return pack_tensor(array, codec)

    def unpack(self, body: bytes | bytearray | memoryview, *, max_bytes: int) -> torch.Tensor:
        """See Adapter."""
        header, array = unpack_tensor(body, max_bytes=max_bytes)
        if not array.flags.writeable:  # torch has no read-only tensors
            array = array.copy()
        if header.dtype == "bfloat16":
            return cast(torch.Tensor, torch.from_numpy(array.view("int16")).view(torch.bfloat16))
        return cast(torch.Tensor, torch.from_numpy(array))


register(TorchAdapter())
