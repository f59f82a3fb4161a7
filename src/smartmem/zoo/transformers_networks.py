"""Networks from transformers (Apache-2.0), configured by hand as published; nothing is downloaded."""

from __future__ import annotations

import torch
import transformers


class _Pick(torch.nn.Module):
    """A model of token numbers that returns one of its outputs as a plain tensor, without a cache."""

    def __init__(self, model: torch.nn.Module, output: str, **options: bool) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.options = options

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Without a mask, the older exporter traces into a search for packed sequences, which it cannot export.
        mask = torch.ones_like(input_ids) if torch.jit.is_tracing() else None
        results = self.model(input_ids=input_ids, attention_mask=mask, return_dict=True, **self.options)
        return getattr(results, self.output)


def clip_text_encoder() -> torch.nn.Module:
    """The text encoder of Stable Diffusion 1.x: CLIP ViT-L/14's, tokens (n, up to 77) -> states (n, tokens, 768)."""
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    return _Pick(transformers.CLIPTextModel(config), "last_hidden_state")


def pythia_1b(layers: int = 16) -> torch.nn.Module:
    """Pythia-1B, or its first layers: tokens (n, up to 2048) -> logits (n, tokens, 50304)."""
    config = transformers.GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=8,
        intermediate_size=8192,
        hidden_act="gelu",
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return _Pick(transformers.GPTNeoXForCausalLM(config), "logits", use_cache=False)
