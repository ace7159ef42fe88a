"""The network of `embed`, a BERT encoder with its words' mean on top, in torch alone.

The encoder of Devlin, Chang, Lee and Toutanova, "BERT" (2018, https://arxiv.org/abs/1810.04805), in the size of MiniLM (Wang et
al., 2020, https://arxiv.org/abs/2002.10957), pooled as in "Sentence-BERT" (Reimers and Gurevych, 2019,
https://arxiv.org/abs/1908.10084). Modules have the names that the weights are published under.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what everybody calls it

LAYERS = 6
WIDTH = 384
HEADS = 12
INNER = 1536
WORDS = 30522
POSITIONS = 512
KINDS = 2
EPSILON = 1e-12


def module() -> nn.Module:
    """Make the network, without its weights."""
    return Embedder()


class Embedder(nn.Module):
    """Tokens to the vector of length 1 that stands for their sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Turn tokens, INT64 [N, length], and what they are, 1 a token and 0 padding, into floats [N, WIDTH].

        A row of padding alone becomes zeros.
        """
        hidden: Tensor = self.embeddings(input_ids)
        weight = attention_mask.to(hidden.dtype)
        # Finite, since a row of nothing but minus infinity has no softmax.
        bias = (1 - weight)[:, None, None, :] * torch.finfo(hidden.dtype).min
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined] # a ModuleDict's values are not known to be lists
            hidden = layer(hidden, bias)
        total = (hidden * weight[:, :, None]).sum(dim=1)
        return F.normalize(total / weight.sum(dim=1, keepdim=True).clamp(min=1))


class Embeddings(nn.Module):
    """What each token and its place begin as: floats [N, length, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(KINDS, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look them up and add them."""
        places = self.position_embeddings.weight[: input_ids.shape[1]]
        # The second kind of token is for the second of a pair of texts, and here is one.
        hidden: Tensor = self.LayerNorm(self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0] + places)
        return hidden


class Layer(nn.Module):
    """Every token looks at all tokens, then each thinks for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(), "output": Output(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Output(INNER)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Turn floats [N, length, WIDTH] into the same shape; `bias` is as in `Attention`."""
        seen: Tensor = self.attention["output"](self.attention["self"](hidden, bias), hidden)
        thought: Tensor = self.output(F.gelu(self.intermediate["dense"](seen)), seen)
        return thought


class Attention(nn.Module):
    """Each head adds up what tokens say, as far as it matters to the one that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Turn floats [N, length, WIDTH] into the same shape; `bias`, [N, 1, 1, length], is added to how much a token matters."""
        query, key, value = (
            part(hidden).unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """What was found out, added to what was known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, found: Tensor, known: Tensor) -> Tensor:
        """Turn floats [N, length, width] and [N, length, WIDTH] into the shape of the latter."""
        hidden: Tensor = self.LayerNorm(self.dense(found) + known)
        return hidden
