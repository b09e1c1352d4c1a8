"""What each image of the corpus is shown and asked while the teacher learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import BlipProcessor

from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.teacher.pico.training import captions, corpus
from hoi_distill.stages.teacher.pico.training.captions import Fact, Grammar
from hoi_distill.stages.teacher.pico.training.packing import Packed, pack


def vocabulary_words(grammar: Grammar) -> set[str]:
    """Every word of the grammar."""
    sentences = [captions.LIST_PREFIX, captions.NOTHING, captions.YES, captions.NO, captions.caption(grammar.facts)]
    sentences += [captions.question(*fact) for fact in grammar.facts if fact[0] != NO_INTERACTION]
    sentences.append(captions.listing(grammar.facts))
    return {word.strip(".,:;?") for sentence in sentences for word in sentence.split()}


class TokenizedSentences:
    """Every sentence of the grammar, tokenized once."""

    def __init__(self, processor: BlipProcessor, grammar: Grammar) -> None:
        tokenizer = processor.tokenizer
        self._encode: Callable[[list[str]], list[list[int]]] = lambda texts: tokenizer(texts)["input_ids"]
        self.bos, self.sep = tokenizer.bos_token_id, tokenizer.sep_token_id
        self.yes, self.no = tokenizer.convert_tokens_to_ids([captions.YES, captions.NO])
        self.prompts = self._encode([captions.prompt(*fact) for fact in grammar.facts])
        self.list_prefix = self.opening(captions.LIST_PREFIX)
        self.questions = [
            None if verb == NO_INTERACTION else self.opening(captions.question(verb, obj))
            for verb, obj in grammar.facts
        ]

    def opening(self, prefix: str) -> list[int]:
        """``[DEC] prefix``, as the captioner's ``generate`` starts."""
        return [self.bos, *self._encode([prefix])[0][1:-1]]

    def bodies(self, sentences: list[str]) -> list[list[int]]:
        """``sentence [SEP]`` for each."""
        return [ids[1:] for ids in self._encode(sentences)]


class Data:
    """One corpus part with its facts and tokenized sentences."""

    def __init__(
        self, part: corpus.CorpusPart, texts: TokenizedSentences, grammar: Grammar, processor: BlipProcessor
    ) -> None:
        loaded = corpus.load(part)
        self.pixels = loaded.pixels
        self.primary, self.every = loaded.facts(grammar)
        self.captions = texts.bodies(loaded.captions)
        listed = [captions.listing(grammar.facts[h] for h in np.flatnonzero(row)) for row in self.every]
        self.listings = texts.bodies(listed)
        image = processor.image_processor
        self._mean, self._std = torch.tensor(image.image_mean) * 255, torch.tensor(image.image_std) * 255

    def images(self, index: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Normalised float ``[B, 3, 128, 128]``, channels last, half of them mirrored (no fact names a side)."""
        pixels = self.pixels[np.sort(index)][np.argsort(np.argsort(index))]
        mirrored = rng.random(len(index)) < 0.5
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        images = (torch.from_numpy(pixels).float() - self._mean) / self._std
        return images.permute(0, 3, 1, 2)  # memory stays [B, H, W, 3]: channels last


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless index batches, epoch after epoch, without replacement within one."""
    while True:
        order = rng.permutation(count)
        yield from (order[i : i + size] for i in range(0, count - size + 1, size))


class PromptSampler:
    """Chooses which prompts an image is matched with.

    Args:
        facts: Every fact of the vocabulary.
        prompts: Token ids of the prompt of each fact.
        other_verb: Share of the false prompts that are a true one with another verb.
        other_object: The same with another object.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        prompts: Sequence[list[int]],
        *,
        other_verb: float = 0.55,
        other_object: float = 0.2,
    ) -> None:
        self._prompts, self.other_verb, self.other_object = prompts, other_verb, other_object
        self.same_object = [[j for j, g in enumerate(facts) if g[1] == f[1] and g != f] for f in facts]
        self.same_verb = [[j for j, g in enumerate(facts) if g[0] == f[0] and g != f] for f in facts]

    def swap(self, true: np.ndarray, rng: np.random.Generator) -> int:
        """A fact that does not hold: a true one with another verb or another object, or any.

        ``true`` is bool ``[H]``, co-labels included: to hold the cup that one drinks from is no negative.
        """
        present = np.flatnonzero(true)
        kind = rng.random()
        if kind < self.other_verb + self.other_object:
            pool = self.same_object if kind < self.other_verb else self.same_verb
            wrong = [j for j in pool[rng.choice(present)] if not true[j]]
            if wrong:
                return int(rng.choice(wrong))
        return int(rng.choice(np.flatnonzero(~true)))

    def prompts(self, every: np.ndarray, count: int, rng: np.random.Generator) -> tuple[Packed, Tensor]:
        """``count`` ITM prompts an image, at most three of them true; labels int64 ``[B * count]``."""
        rows, labels = [], []
        for true in every:
            positives = rng.permutation(np.flatnonzero(true))[:3]
            negatives = [self.swap(true, rng) for _ in range(count - len(positives))]
            rows.append([self._prompts[h] for h in (*positives, *negatives)])
            labels += [1] * len(positives) + [0] * len(negatives)
        return pack(rows), torch.tensor(labels)


class Sampler(PromptSampler):
    """Chooses what each image is asked."""

    def __init__(self, grammar: Grammar, texts: TokenizedSentences) -> None:
        super().__init__(grammar.facts, texts.prompts)
        self.texts = texts

    def language(
        self, data: Data, index: np.ndarray, count: int, rng: np.random.Generator
    ) -> tuple[Packed, Tensor, Tensor]:
        """Caption and list in turn, with ``count`` yes/no questions each.

        Returns packed decoder texts and two label arrays int64 ``[B, L]``, -100 where nothing is asked: for the
        sentences, and for the one-word answers (position t holds the token that follows it).
        """
        texts, rows, sentence_spans, answers = self.texts, [], [], []
        for turn, i in enumerate(index):
            start, body = ([texts.bos], data.captions[i]) if turn % 2 else (texts.list_prefix, data.listings[i])
            row = [start + body[:-1]]
            sentence_spans.append((len(start) - 1, body))
            end, marks = len(row[0]), []
            true = data.every[i]
            for _ in range(count):
                asked = self._asked(true, rng)
                opening = texts.questions[asked]
                assert opening is not None
                answer = texts.yes if true[asked] else texts.no
                row.append([*opening, answer])
                end += len(opening) + 1
                marks.append((end - 2, answer))
            rows.append(row)
            answers.append(marks)
        packed = pack(rows)
        sentences = torch.full(packed.ids.shape, -100)
        words = sentences.clone()
        for b, ((first, body), marks) in enumerate(zip(sentence_spans, answers, strict=True)):
            sentences[b, first : first + len(body)] = torch.tensor(body)
            for position, answer in marks:
                words[b, position] = answer
                words[b, position + 1] = texts.sep
        return packed, sentences, words

    def _asked(self, true: np.ndarray, rng: np.random.Generator) -> int:
        """An interaction to ask about, true half of the time where there is one; mostly verb swaps otherwise."""
        candidates = [h for h in np.flatnonzero(true) if self.texts.questions[h] is not None]
        if candidates and rng.random() < 0.5:
            return int(rng.choice(candidates))
        while True:
            h = self.swap(true, rng)
            if self.texts.questions[h] is not None:
                return h
