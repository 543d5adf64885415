"""Deltas in fewer bytes: what rounding may cost, what a record weighs, and more bits on demand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.memory.codec import KINDS, Codec, Kind, fit_codec


def test_int8_by_hand():
    codec = Codec("int8", (3, 2), block=2)  # blocks: [0, 1], [2], [3, 4]
    delta = torch.tensor([127.0, 63.4, 0.0, -254.0, 3.1])
    record = codec.encode(delta)
    # three bfloat16 scales 1, 0 and 2, then the codes 127, 63, 0, -127 and 2, and padding
    assert record[:6].view(torch.bfloat16).tolist() == [1.0, 0.0, 2.0]
    assert record[6:11].view(torch.int8).tolist() == [127, 63, 0, -127, 2]
    assert len(record) == codec.record_bytes == 16
    assert codec.decode(record).tolist() == [127.0, 63.0, 0.0, -254.0, 4.0]


def test_int4_by_hand():
    codec = Codec("int4", (3,))
    record = codec.encode(torch.tensor([7.0, -7.0, 2.4]))
    # scale 1; codes 7, -7 and 2 as 15, 1 and 10, two to a byte, the last beside a zero (8)
    assert record[:2].view(torch.bfloat16).tolist() == [1.0]
    assert record[2:4].tolist() == [15 | (1 << 4), 10 | (8 << 4)]
    assert codec.decode(record).tolist() == [7.0, -7.0, 2.0]


@pytest.mark.parametrize(("kind", "size"), [("int4", 536), ("int8", 1032), ("bfloat16", 2000)])
def test_what_a_record_weighs(kind: Kind, size: int):
    # 1000 numbers in 16 blocks: 32 B of scales (+ 4 or 8 of padding); 4000 B uncoded
    codec = Codec(kind, (1000,))
    assert codec.record_bytes == size
    assert codec.encode(torch.randn(2, 3, 1000)).shape == (2, 3, size)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda s: sum(s) > 0),
    st.integers(1, 5),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.integers(0, 99),
)
def test_rounding_errs_by_half_a_scale_at_most(
    segments: list[int], block: int, size: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(2, sum(segments), generator=generator) * size
    for codec, largest in (
        (Codec("int8", tuple(segments), block), 127),
        (Codec("int4", tuple(segments), block), 7),
    ):
        decoded = codec.decode(codec.encode(delta))
        start = 0
        for segment in segments:
            stop = start + segment
            for b in range(start, stop, block):
                piece = slice(b, min(b + block, stop))
                # bfloat16 rounds the scale by 2^-8 of itself at most
                limit = delta[:, piece].abs().amax(-1, keepdim=True) / largest * (0.5 + 2**-8)
                wrong = (decoded[:, piece] - delta[:, piece]).abs()
                assert (wrong <= limit * (1 + 1e-5)).all()
            start = stop
    exact = Codec("float32", tuple(segments), block)
    assert torch.equal(exact.decode(exact.encode(delta)), delta)
    half = Codec("bfloat16", tuple(segments), block)
    torch.testing.assert_close(half.decode(half.encode(delta)), delta, rtol=2**-8, atol=0)


def test_a_large_number_spoils_only_its_own_segment():
    delta = torch.cat([torch.full((10,), 0.01), torch.tensor([5.0])])
    apart, together = Codec("int4", (10, 1)), Codec("int4", (11,))
    assert (apart.decode(apart.encode(delta)) - delta)[:10].abs().max() < 1e-4
    assert together.decode(together.encode(delta))[:10].tolist() == [0.0] * 10


def test_what_cannot_be_coded_is_refused():
    codec = Codec("int8", (2,))
    with pytest.raises(ValueError, match="not finite"):
        codec.encode(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="2 numbers here, got 3"):
        codec.encode(torch.zeros(3))


def test_the_fewest_bits_that_pass():
    delta = torch.randn(100, generator=torch.Generator().manual_seed(0))

    def within(tolerance: float, start: Kind = "int4") -> str:
        tried: list[float] = []

        def check(decoded: torch.Tensor) -> bool:
            tried.append(float((decoded - delta).abs().max()))
            return tried[-1] <= tolerance

        codec, record = fit_codec(delta, check, start=start)
        assert tried == sorted(tried, reverse=True)  # ever more faithful, and no more than needed
        assert (
            codec.kind == "float32"
            or float((codec.decode(record) - delta).abs().max()) == (tried[-1])
        )
        return codec.kind

    assert [within(t) for t in (1.0, 0.02, 0.0)] == ["int4", "int8", "float32"]
    assert within(1.0, start="bfloat16") == "bfloat16"
    assert KINDS[-1] == "float32"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_records_is_read_in_place_and_on_any_row(kind: Kind):
    codec = Codec(kind, (5, 130), 64)
    delta = torch.randn(4, 135, generator=torch.Generator().manual_seed(0))
    table = torch.zeros(9, codec.record_bytes, dtype=torch.uint8)
    table[3:7] = codec.encode(delta)
    alone = torch.stack([codec.decode(codec.encode(d)) for d in delta])
    assert torch.equal(codec.decode(table[torch.tensor([6, 3])]), alone[[3, 0]])
    assert torch.equal(codec.decode(table)[:3], torch.zeros(3, 135)) or kind == "int4"


def test_numbers_too_small_for_an_exact_scale_keep_their_sign():
    delta = torch.tensor([1.65e-38, -1.65e-38])  # the scale 1.3e-40 rounds down by a third
    decoded = Codec("int8", (2,)).decode(Codec("int8", (2,)).encode(delta))
    assert bool((decoded * torch.tensor([1.0, -1.0]) >= 0).all())
    assert (decoded - delta).abs().max() < 1e-38
