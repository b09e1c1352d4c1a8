"""Stage 1's losses: symmetric contrast of images and texts, as wholes and token by token.

That the losses are contrastive is CL-HOI's; their form here is ours, after CLIP (Radford et al. 2021; global contrast) and FILIP
(Yao et al. 2022; late interaction). All are computed in float32 and are finite for a batch without a second image.

Shape legend: B images, N texts of which the first B are the images' own, Q tokens, J sentences, T text width, H interactions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def late_similarity(phrases: Tensor, sentences: Tensor, text: Tensor, texts: int) -> Tensor:
    """Each text's sentences find their closest token, and are averaged: float ``[B, N]`` (FILIP's text-to-image side).

    Args:
        phrases: float ``[B, Q, T]`` tokens of the images.
        sentences: float ``[J, T]`` of all texts.
        text: int64 ``[J]``, the text of each sentence. Every text has one.
        texts: N.
    """
    closest = (phrases @ sentences.T).amax(1)  # [B, J]
    total = closest.new_zeros(len(phrases), texts).index_add(1, text, closest)
    count = closest.new_zeros(texts).index_add(0, text, closest.new_ones(len(text)))
    return total / count.clamp(min=1)


def symmetric_nce(similarity: Tensor, same: Tensor) -> Tensor:
    """Contrast of each image with all texts and of each of its texts with all images, averaged: a scalar.

    ``-1/2 * mean_i [log softmax_j S(i, j) at j = i + log softmax_j S(j, i) at j = i]``. Texts without an image (a queue of
    earlier ones) are negatives of images alone.

    Args:
        similarity: float ``[B, N]`` over temperature, N >= B; text i < B is image i's own.
        same: bool ``[B, N]``, pairs that are no negatives of each other; its diagonal is not read.
    """
    own = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
    contrasted = similarity.float().masked_fill(same & ~own, -torch.inf)
    images = contrasted[:, : len(contrasted)]
    found = contrasted.log_softmax(1).diagonal() + images.log_softmax(0).diagonal()
    return -0.5 * found.mean() if len(found) else similarity.sum() * 0


def same_sets(positive: Tensor, others: Tensor) -> Tensor:
    """bool ``[B, N]``: whether two images show the same interactions, of which they show at least one.

    Args:
        positive: bool ``[B, H]``, the interactions that images show. Two images without any may well differ.
        others: bool ``[N, H]``, the same of the images that they are compared with.
    """
    a, b = positive.float(), others.float()
    common, sizes, other_sizes = a @ b.T, a.sum(1)[:, None], b.sum(1)[None]
    return (common == sizes) & (common == other_sizes) & (sizes > 0)


def context_loss(
    phrases: Tensor, whole: Tensor, sentences: Tensor, text: Tensor, *, same: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Stage 1's terms, the global and the late contrast: two scalars.

    Args:
        phrases: float ``[B, Q, T]`` of length 1, tokens of the images.
        whole: float ``[B, T]`` of length 1, the images as wholes.
        sentences: float ``[J, T]`` of length 1, of N texts.
        text: int64 ``[J]``, the text of each sentence.
        same: bool ``[B, N]``, pairs that are no negatives of each other.
        temperature: scalar, of both contrasts.
    """
    texts = same.shape[1]
    mean = F.normalize(sentences.new_zeros(texts, sentences.shape[1]).index_add(0, text, sentences), dim=1)
    late = late_similarity(phrases, sentences, text, texts)
    return symmetric_nce(whole @ mean.T / temperature, same), symmetric_nce(late / temperature, same)
