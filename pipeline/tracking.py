"""People and objects of a video from frame to frame, so that labels do not flicker.

ByteTrack (Zhang et al. 2022), of the package ``trackers``, follows the boxes of each class, from their second frame on. A
pair is then its two tracks and its verb, and its score is smoothed in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hoi_distill.pipeline.hoi_result import HOIResult

SMOOTHED = 0.25
"""Seconds in which the score of a pair follows a change by two thirds."""
HELD = 0.4
"""Seconds for which a pair that is not found any more stays where it was, if its score is still high enough."""
KEPT = 0.8
"""A pair that is shown stays until its score falls below this part of the threshold."""
WEAK = 0.25
"""Boxes of pairs below this part of the threshold are not followed."""

FORGOTTEN = 5.0
"""Seconds after which a track's number is free of it. ByteTrack itself gives a lost track up after one."""

PairKey = tuple[int, int, str]
"""Tracks of person and object, and the verb. The object's is -1 where there is none."""


@dataclass
class Followed:
    """A pair that was seen in a frame.

    Attributes:
        score: smoothed.
        seen: seconds of the last frame that had it.
        human_box: float32 ``[4]``, xyxy pixels, of that frame.
        object_box: likewise; NaN without an object.
        object: its name, or "".
        shown: whether it was shown in that frame.
    """

    score: float
    seen: float
    human_box: np.ndarray
    object_box: np.ndarray
    object: str
    shown: bool = False


class PairTracks:
    """The pairs of a video. It is called with the results of its frames in order.

    It remembers pairs of the last :data:`HELD` seconds, and numbers of tracks for :data:`FORGOTTEN`.

    Args:
        frames_per_second: of the video.
        threshold: a pair is shown from this smoothed score on.
    """

    def __init__(self, frames_per_second: float, threshold: float) -> None:
        self.frames_per_second, self.threshold = frames_per_second, threshold
        self.trackers: dict[str, Any] = {}
        self.numbers: dict[tuple[str, int], tuple[int, float]] = {}
        self.counted = 0
        self.pairs: dict[PairKey, Followed] = {}
        self.last = self.now = 0.0

    def __call__(self, result: HOIResult, seconds: float) -> tuple[HOIResult, list[int], list[int]]:
        """One frame.

        Args:
            result: its pairs, those of weak scores too.
            seconds: from the video's beginning.

        Returns:
            The pairs that are shown, the best first, with smoothed scores; and of each the tracks of person and object, from
            1, 0 where there is none.
        """
        self.now = seconds
        self.numbers = {key: each for key, each in self.numbers.items() if seconds - each[1] < FORGOTTEN}
        humans = self._tracks(result.human_box, ["person"] * len(result), result.score)
        objects = self._tracks(result.object_box, result.object, result.score)
        now: dict[PairKey, int] = {}
        for position in range(len(result)):
            if humans[position] > 0 and (objects[position] > 0 or not result.object[position]):
                now.setdefault((humans[position], objects[position], result.verb[position]), position)
        share = 1 - math.exp(-max(seconds - self.last, 0) / SMOOTHED)
        self.last = seconds
        for key in [*now, *(key for key in self.pairs if key not in now)]:
            self._follow(key, now.get(key), result, seconds, share)
        return self._shown(result)

    def _follow(self, key: PairKey, position: int | None, result: HOIResult, seconds: float, share: float) -> None:
        """Take one pair on: where it is in this frame, or that it is in none."""
        before = self.pairs.get(key)
        score = 0.0 if position is None else float(result.score[position])
        if before is not None:
            score = before.score + share * (score - before.score)
        if position is not None:
            boxes = result.human_box[position], result.object_box[position]
            shown = before is not None and before.shown
            self.pairs[key] = Followed(score, seconds, *boxes, result.object[position], shown)
        elif before is not None:
            before.score = score
            if seconds - before.seen > HELD:
                del self.pairs[key]

    def _shown(self, result: HOIResult) -> tuple[HOIResult, list[int], list[int]]:
        """What is shown now."""
        for pair in self.pairs.values():
            pair.shown = pair.score >= self.threshold * (KEPT if pair.shown else 1)
        shown = sorted(((key, pair) for key, pair in self.pairs.items() if pair.shown), key=lambda each: -each[1].score)
        found = replace(
            result,
            human_box=np.array([pair.human_box for _, pair in shown], np.float32).reshape(-1, 4),
            object_box=np.array([pair.object_box for _, pair in shown], np.float32).reshape(-1, 4),
            verb=[key[2] for key, _ in shown],
            object=[pair.object for _, pair in shown],
            score=np.array([pair.score for _, pair in shown], np.float64),
        )
        return found, [key[0] for key, _ in shown], [max(key[1], 0) for key, _ in shown]

    def _tracks(self, boxes: np.ndarray, classes: list[str], scores: np.ndarray) -> list[int]:
        """The track of each box, from 1; 0 where it has none yet, -1 where there is no box.

        Args:
            boxes: float ``[N, 4]``; of one box several rows may speak.
            classes: N names, "" where there is no box.
            scores: float ``[N]``.
        """
        found = [-1 if not name else 0 for name in classes]
        for name in sorted({*self.trackers, *classes} - {""}):
            rows = [row for row, its in enumerate(classes) if its == name and scores[row] >= WEAK * self.threshold]
            unique, member = np.unique(boxes[rows].round(1), axis=0, return_inverse=True)
            best = np.zeros(len(unique))
            np.maximum.at(best, member.ravel(), scores[rows])
            tracks = self._followed(name, unique, best)
            for row, own in zip(rows, member.ravel().tolist(), strict=True):
                found[row] = tracks[own]
        return found

    def _followed(self, name: str, boxes: np.ndarray, scores: np.ndarray) -> list[int]:
        """The tracks of the distinct boxes of one class in this frame; 0 where one has none."""
        from supervision import Detections
        from trackers import ByteTrackTracker

        if name not in self.trackers:
            self.trackers[name] = ByteTrackTracker(
                frame_rate=self.frames_per_second,
                track_activation_threshold=self.threshold,
                high_conf_det_threshold=self.threshold,
                minimum_consecutive_frames=1,
            )
        given = Detections(
            xyxy=boxes.reshape(-1, 4).astype(np.float32), confidence=scores, data={"row": np.arange(len(boxes))}
        )
        answer = self.trackers[name].update(given)
        tracks = [0] * len(boxes)
        if len(answer):
            for row, track in zip(answer.data["row"].tolist(), answer.tracker_id.tolist(), strict=True):
                tracks[row] = 0 if track < 0 else self._number(name, track)
        return tracks

    def _number(self, name: str, track: int) -> int:
        """Tracks are counted from 1 through all classes."""
        if (name, track) not in self.numbers:
            self.counted += 1
        number = self.numbers.get((name, track), (self.counted, 0.0))[0]
        self.numbers[name, track] = number, self.now
        return number
