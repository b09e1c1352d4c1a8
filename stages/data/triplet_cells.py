"""What a cell of a triplets table holds, whoever found the triplets."""

from __future__ import annotations

import pyarrow as pa

TRIPLETS = pa.struct(
    [
        ("verb", pa.list_(pa.int16())),
        ("object", pa.list_(pa.int16())),
        ("weight", pa.list_(pa.float32())),
        ("phrase", pa.list_(pa.string())),
        ("dropped", pa.list_(pa.struct([("phrase", pa.string()), ("reason", pa.string())]))),
    ]
)
"""Positions of the vocabulary, a weight in [0, 1] and the words of each triplet; and what was said and dropped, with a reason."""

UNKNOWN_VERB = "no such verb"
UNKNOWN_OBJECT = "no such object"
UNKNOWN_PAIR = "no such interaction"
