"""What does each tensor codec cost, how small does it make an array, and how wrong?

float32, one thread, medians of process CPU time; a MB is of the array as it is (RAW). Encoding is up to the buffers
that are sent, decoding from the body that came. `python benchmarks/tensor_codecs.py [elements] [repeats]`
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median

import numpy as np

from mesh.rpc.codec import Codec
from mesh.rpc.tensor import pack_tensor, unpack_tensor

LIMIT = 1 << 30
TOKEN = 512


def inputs(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(count).astype("float32")
    outliers = np.where(rng.random(count) < 0.001, 50 * normal, normal)
    sparse = np.where(rng.random(count) < 0.95, np.float32(0), normal)
    return {"N(0,1)": normal, "0.1 % outliers x50": outliers, "95 % zeros": sparse}


def measure(array: np.ndarray, codec: Codec, repeats: int) -> tuple[int, float, float, float]:
    """Bytes of the body, CPU seconds of encoding and decoding, relative L2 error."""
    encode_s, decode_s = [], []
    # A clock tick may be longer than one small array takes: many at once.
    batch = max(1, 65_536 // array.size)
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(batch):
            buffers = pack_tensor(array, codec)
        encode_s.append((time.process_time() - start) / batch)
        body = bytearray(b"".join(buffers))
        start = time.process_time()
        for _ in range(batch):
            _, got = unpack_tensor(body, max_bytes=LIMIT)
        decode_s.append((time.process_time() - start) / batch)
    exact = array.astype("float64")
    error = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    return len(body), median(encode_s), median(decode_s), error


def main(count: int, repeats: int) -> None:
    load = os.getloadavg()[0]
    print(
        f"{count} elements, {repeats} repeats; load {load:.1f}; Python {sys.version.split()[0]}, numpy {np.__version__}"
    )
    print(f"{'values':20} {'codec':5} {'bytes/elem':>10} {'encode':>8} {'decode':>8} CPU-ms/MB {'relative L2':>12}")
    for name, array in inputs(count).items():
        for codec in Codec:
            size, encode_s, decode_s, error = measure(array, codec, repeats)
            megabytes = array.nbytes / 1e6
            print(
                f"{name:20} {codec.value:5} {size / array.size:10.3f} {encode_s * 1e3 / megabytes:8.3f}"
                f" {decode_s * 1e3 / megabytes:8.3f} {'':9} {error:12.2e}"
            )
    token = inputs(TOKEN)["N(0,1)"]
    for codec in Codec:
        size, encode_s, decode_s, _ = measure(token, codec, repeats)
        print(f"{TOKEN} elements ({codec.value}): {size} bytes, {encode_s * 1e6:.0f} / {decode_s * 1e6:.0f} CPU-us")


if __name__ == "__main__":
    main(*(int(a) for a in (*sys.argv[1:3], *("1000000", "31")[len(sys.argv) - 1 :])))
