"""Data URLs: there and back, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import data_url
from serve_app.data_url import MEDIA_TYPES, Picture


@given(st.binary(min_size=1), st.sampled_from(MEDIA_TYPES))
def test_parse_undoes_build(data: bytes, media_type: str) -> None:
    picture = Picture(data=data, media_type=media_type)
    assert data_url.parse(data_url.build(picture)) == picture


@given(st.text())
def test_other_text_is_refused_without_being_repeated(text: str) -> None:
    try:
        data_url.parse(text)
    except ValueError as error:
        assert len(text) < 8 or text not in str(error)
    else:
        assert text.lower().startswith("data:image/")


def test_names_are_read_in_any_case_and_jpg_is_jpeg() -> None:
    assert data_url.parse("DATA:Image/JPG;BASE64,AAAA") == Picture(data=b"\0\0\0", media_type="image/jpeg")


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAA",  # no padding
        "data:image/png;base64,AAAA====",
        "data:image/png;base64,AA==AA==",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,AAAA ",
        " data:image/png;base64,AAAA",
        "data:image/png;base64;base64,AAAA",
        "data:image/tiff;base64,AAAA",
        "data:;base64,AAAA",
        "data:,AAAA",
    ],
)
def test_near_misses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|holds|has"):
        data_url.parse(url)
