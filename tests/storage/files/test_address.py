"""Addresses of object stores: told from paths, and made like them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import ObjectPath, place_at


def test_an_address_is_told_from_a_path_and_parts_like_one():
    place = place_at("s3://bucket//a/b/")
    assert place == ObjectPath("s3://bucket/a/b")
    assert place_at(place) is place
    assert (place.bucket, place.key, place.name, str(place.parent)) == ("s3://bucket", "a/b", "b", "s3://bucket/a")
    assert str(place / "c.json") == "s3://bucket/a/b/c.json"
    assert place_at("gs://bucket").key == ""
    assert pickle.loads(pickle.dumps(place)) == place
    assert place_at("cache/s3://x") == Path("cache/s3://x")


@pytest.mark.parametrize("wrong", ["s3://", "az:///a"])
def test_an_address_without_a_bucket_is_refused(wrong):
    with pytest.raises(UserError, match=f"{wrong}: names no bucket; write {wrong[:5]}bucket/folder"):
        place_at(wrong)


def test_an_address_that_was_taken_for_a_path_makes_no_folder_of_its_name():
    with pytest.raises(UserError, match="taken for a path"):
        place_at(Path("s3://bucket/cache"))
