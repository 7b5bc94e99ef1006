#!/usr/bin/env python3
"""Makes the goldens of cross-attention: random layers, and what PyTorch says of them.

    pip install torch diffusers safetensors numpy
    python3 tests/parity/attention.py                   # tests/parity/attention/NN/

Every `calls.safetensors` holds a layer of diffusers' `Attention` with
`cross_attention_dim` (no whole network: quell imports none that has it yet), the
image that asks, the tokens that it looks at, and the result. `sizes` are rows and
columns of the image, tokens, and heads. Seeds are fixed: the same versions of
PyTorch and diffusers give the same files.
"""

import argparse
import math
import shutil
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import save_file

# Rows, columns, tokens; channels of image and tokens; heads and their channels.
CASES = [
    dict(size=(4, 4), tokens=7, query_dim=8, cross_attention_dim=12, heads=2, dim_head=4),
    dict(size=(3, 5), tokens=20, query_dim=6, cross_attention_dim=5, heads=1, dim_head=18, bias=True),
    dict(size=(2, 4), tokens=8, query_dim=16, cross_attention_dim=16, heads=4, dim_head=3),
    dict(size=(5, 5), tokens=1, query_dim=4, cross_attention_dim=3, heads=2, dim_head=2),
]


@torch.no_grad()
def calls(case, seed):
    torch.manual_seed(seed)
    fields = {key: value for key, value in case.items() if key not in ("size", "tokens")}
    layer = Attention(**fields).eval()
    for parameter in layer.parameters():
        scale = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.2
        parameter.data = torch.randn_like(parameter) * scale
    height, width = case["size"]
    # Large enough that softmax has its favourites.
    image = 2.0 * torch.randn(2, case["query_dim"], height, width)
    context = torch.randn(2, case["tokens"], case["cross_attention_dim"])
    result = {name: value.contiguous() for name, value in layer.state_dict().items()}
    result["sizes"] = torch.tensor([height, width, case["tokens"], case["heads"]], dtype=torch.int32)
    result["input"], result["context"] = image, context
    result["output"] = layer(image, encoder_hidden_states=context).contiguous()
    return result


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    torch.set_num_threads(1)
    goldens = Path(__file__).parent / "attention"
    shutil.rmtree(goldens, ignore_errors=True)
    for i, case in enumerate(CASES):
        folder = goldens / f"{i:02}"
        folder.mkdir(parents=True)
        save_file(calls(case, i), folder / "calls.safetensors")
        print(f"{i:02} {(folder / 'calls.safetensors').stat().st_size:7} bytes", case)


if __name__ == "__main__":
    main()
