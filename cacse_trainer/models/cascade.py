"""The cross-attention cascade that joins the two towers of CACSE (METHODS: one block for each upper encoder layer).

Its attentions see a sequence of one token, the CLS: the softmax over one key is 1, so ``MHA(q, k, v)`` is
``W_o(W_v v + b_v) + b_o`` whatever q and k are. The query and key projections of the reference therefore have no effect
and a zero gradient; there are none here (28 M parameters less at BERT-base).

Source: the CACSE release, ``cascade_model.py``.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cacse_trainer.models.heads import FreshLinear
from cacse_trainer.models.layers import run_alone


class SingleTokenAttention(nn.Module):
    """Multi-head attention over one key: ``W_o(W_v v + b_v) + b_o``. (…, H) → (…, H).

    Drawn as `nn.MultiheadAttention` draws it: value weights from the Xavier bound of the fused (3H, H) in-projection,
    √(6/4H), biases 0.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        xavier = math.sqrt(6 / (4 * hidden_size))
        self.value = FreshLinear(hidden_size, hidden_size, weight_bound=xavier, bias_bound=0.0)
        self.output = FreshLinear(hidden_size, hidden_size, bias_bound=0.0)

    def forward(self, value: Tensor) -> Tensor:
        return self.output(self.value(value))


class CascadeView(nn.Module):
    """The weights of one view in one block: W, LN, self-attention, cross-attention, LN'."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = FreshLinear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.self_attention = SingleTokenAttention(hidden_size)
        self.cross_attention = SingleTokenAttention(hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)

    def attend(self, state: Tensor, residual: Tensor) -> Tensor:
        """``SelfAttention(LN(W·state + residual))``: (B, H) → (B, H)."""
        return self.self_attention(self.norm(self.linear(state) + residual))


class CascadeBlock(nn.Module):
    """One block of the cascade over the CLS states of one encoder layer.

    The first block adds the state itself as residual and drops out AFTER the output norm; the later ones add the
    previous block's output and drop out on the cross-attention BEFORE the product (as the reference does).
    """

    def __init__(self, hidden_size: int, dropout: float, first: bool):
        super().__init__()
        self.view_x = CascadeView(hidden_size)
        self.view_y = CascadeView(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.first = first

    def forward(
        self, state_x: Tensor, state_y: Tensor, previous_x: Tensor, previous_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """state, previous: (B, H) a view → both outputs, (B, H)."""
        u = self.view_x.attend(state_x, state_x if self.first else previous_x)
        v = self.view_y.attend(state_y, state_y if self.first else previous_y)
        cross_x = self.view_x.cross_attention(v)  # queries from u, values from v
        cross_y = self.view_y.cross_attention(u)
        if self.first:
            return (
                self.dropout(self.view_x.output_norm(cross_x * u)),
                self.dropout(self.view_y.output_norm(cross_y * v)),
            )
        return (
            self.view_x.output_norm(self.dropout(cross_x) * u),
            self.view_y.output_norm(self.dropout(cross_y) * v),
        )


class Cascade(nn.Module):
    """Blocks for the encoder layers k0..last, with the constraint layers behind the first.

    Args:
        blocks: number of blocks, last - k0 + 1.
        hidden_size: H.
        dropout: of the blocks.
        constraint_layers: encoder layers of a pretrained model, shared by both views, trainable.
        constraint_config: the config of that model.
        constraint_attention: ``batch``: the constraint layers see the batch as one sequence of B tokens and attend
            across it, as the reference does, so L_C depends on the batch's composition; ``sample``: each vector alone.
    """

    def __init__(
        self,
        blocks: int,
        hidden_size: int,
        dropout: float,
        constraint_layers: nn.ModuleList,
        constraint_config: Any,
        constraint_attention: str,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(CascadeBlock(hidden_size, dropout, first=i == 0) for i in range(blocks))
        self.constraint_layers = constraint_layers
        self.constraint_config = constraint_config
        self.constraint_attention = constraint_attention

    def _constrain(self, vectors: Tensor) -> Tensor:
        batch_dim = 0 if self.constraint_attention == "batch" else 1
        hidden = vectors.unsqueeze(batch_dim)  # (1, B, H): one sequence of B tokens, or (B, 1, H)
        hidden = run_alone(self.constraint_layers, self.constraint_config, hidden)
        return hidden.squeeze(batch_dim)  # (B, H)

    def forward(self, states: Tensor) -> Tensor:
        """states: (B, 2, K, H), the towers' summed CLS states of both views, layer k0 first → (B, 2, H)."""
        x = y = states.new_empty(0)  # the first block reads no previous output
        for k, block in enumerate(self.blocks):
            x, y = block(states[:, 0, k], states[:, 1, k], x, y)
            if block.first:
                x, y = self._constrain(x), self._constrain(y)
        return torch.stack([x, y], dim=1)
