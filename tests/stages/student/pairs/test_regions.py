"""What a network reads of a batch: counts that stay on the host, and candidates in groups."""

from __future__ import annotations

import torch

from hoi_distill.stages.student.pairs.regions import Candidates, Counts, Groups, positions_of
from hoi_distill.stages.student.training.loading import moved
from tests.fixtures.link_scenes import batch


def test_counts_are_made_once_and_go_with_the_batch():
    regions = batch([(2, 4), (1, 3), (0, 2)])
    images = len(regions.maps)
    assert list(regions.counts.instances) == torch.bincount(regions.image, minlength=images).tolist()
    assert list(regions.counts.pairs) == torch.bincount(regions.pair_image, minlength=images).tolist()
    elsewhere = moved(regions, "meta")
    assert elsewhere.maps.is_meta
    assert elsewhere.counts == Counts(*(list(counts) for counts in regions.counts))


def test_candidates_are_gathered_by_image_and_interaction():
    pair, hoi, image = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1])
    mask = torch.tensor([False, True, True, True, True])
    groups = Groups.of(Candidates(pair, hoi, torch.ones(5), image), mask, 3)
    assert groups.positions.tolist() == positions_of(mask).tolist() == [1, 2, 3, 4]
    assert groups.member.tolist() == [0, 0, 1, 2]
    assert list(zip(groups.image.tolist(), groups.hoi.tolist(), strict=True)) == [(0, 1), (1, 1), (1, 2)]
    assert len(groups) == 3
