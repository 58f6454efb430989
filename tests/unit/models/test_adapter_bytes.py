from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from cambium.core.canonical import digest_bytes
from cambium.models.adapter_bytes import AdapterBytes


@given(config=st.binary(), weights=st.binary())
def test_the_digest_is_that_of_both_files(config: bytes, weights: bytes) -> None:
    data = AdapterBytes(config=config, weights=weights)
    assert json.loads(data.manifest()) == {
        "adapter_config.json": digest_bytes(config),
        "adapter_model.safetensors": digest_bytes(weights),
    }
    assert data.digest == digest_bytes(data.manifest())


def test_a_byte_moved_between_the_files_changes_it() -> None:
    digests = {
        AdapterBytes(config=c, weights=w).digest
        for c, w in ((b"ab", b"c"), (b"a", b"bc"), (b"c", b"ab"), (b"abc", b""), (b"", b"abc"))
    }
    assert len(digests) == 5
