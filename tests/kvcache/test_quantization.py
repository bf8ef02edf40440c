"""Packed entries against the formula and another quantiser's recorded codes, and their bytes by hand."""

import pytest
import torch

from kvcache.quantization import GROUP, check_bits, pack
from kvcache.storage import KVStorage, KVView
from tests.support.tiny_models import frozen_normal

H, D = 2, 16


def entries(length: int, size: int = D) -> torch.Tensor:
    return frozen_normal("entries", (H, length, size))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("length", "size"), [(64, 64), (1, 16), (33, 16), (70, 7), (5, 34)])
def test_every_number_is_off_by_half_a_step_at_most(
    bits: int, per_channel: bool, length: int, size: int
) -> None:
    given = entries(length, size)
    packed = pack(given, bits, per_channel)
    assert packed.shape == given.shape
    assert packed.codes.shape == (H, length, -(-size * bits // 8))
    error = (packed.unpack() - given).abs()
    for head in range(H):
        for token in range(length):
            for channel in range(size):
                if per_channel:
                    group = given[head, token // GROUP * GROUP : (token // GROUP + 1) * GROUP, channel]
                else:
                    group = given[head, token, channel // GROUP * GROUP : (channel // GROUP + 1) * GROUP]
                step = float(group.max() - group.min()) / (2**bits - 1)
                # half a step, and what low and scale lose in float16
                assert error[head, token, channel] <= 0.5 * step + 2**-11 * (
                    float(group.abs().max()) + 2**bits * step
                )
    if length > 60:
        break_even = {8: 0.008, 4: 0.12, 2: 0.6}[bits]
        assert error.mean() < break_even


def test_codes_by_hand() -> None:
    packed = pack(torch.tensor([[[0.0, 1.0, 2.0, 3.0, 3.0]]]), 2, per_channel=False)
    assert packed.codes.tolist() == [[[0 + (1 << 2) + (2 << 4) + (3 << 6), 3]]]
    assert packed.scale.tolist() == [[[1.0]]]
    assert packed.low.tolist() == [[[0.0]]]
    assert packed.unpack().tolist() == [[[0.0, 1.0, 2.0, 3.0, 3.0]]]
    per_channel = pack(torch.tensor([[[0.0, -4.0], [15.0, -4.0], [7.0, -4.0]]]), 4, per_channel=True)
    assert per_channel.codes.tolist() == [[[0], [15], [7]]]
    assert per_channel.unpack().tolist() == [[[0.0, -4.0], [15.0, -4.0], [7.0, -4.0]]]


def test_bytes_by_hand() -> None:
    storage = KVStorage(entries(70), entries(70) + 1)
    assert KVView(storage).bytes() == 2 * 2 * 70 * 16 * 4
    for bits, per_token in ((8, 16), (4, 8), (2, 4)):
        kept = KVView(storage, torch.tensor([70, 33])).quantised(bits, movable=False)
        keys = (
            103 * per_token + (3 + 2) * 16 * 4
        )  # three and two groups of 32 tokens, per channel a scale and a low of two bytes
        values = 103 * (per_token + 4)  # 16 channels are one group
        assert kept.bytes() == keys + values
        movable = KVView(storage, torch.tensor([70, 33])).quantised(bits, movable=True)
        assert movable.bytes() == 2 * values
    assert KVView(storage).quantised(16, movable=False).bytes() == 2 * 2 * 70 * 16 * 2


def test_bytes_are_those_of_the_tensors() -> None:
    storage = KVStorage(entries(64), entries(64)).quantised(4, None, movable=False)
    held = [
        part
        for one in (storage.stored_keys, storage.stored_values)
        for part in (one.codes, one.scale, one.low)
    ]
    assert (
        storage.bytes == sum(part.numel() * part.element_size() for part in held) == KVView(storage).bytes()
    )


def test_what_lies_behind_a_heads_entries_leaves_no_trace() -> None:
    clean, dirty = entries(40), entries(40)
    dirty[1, 10:] = 1e4
    counts = torch.tensor([40, 10])
    for per_channel in (False, True):
        first, second = (pack(one, 4, per_channel, counts).unpack() for one in (clean, dirty))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1, :10], second[1, :10])


def test_moved_entries_keep_their_codes() -> None:
    storage = KVStorage(entries(40), entries(40) + 1).quantised(2, None, movable=True)
    new, at = entries(3), torch.tensor([[0, 7, 39, 41], [1, 2, 40, 42]])
    after = storage.moved(new, new + 1, at, None)
    again = after.moved(new, new + 1, torch.tensor([[1, 2], [0, 1]]), None)
    both = torch.cat((storage.keys, pack(new, 2, False).unpack()), dim=1)
    for head in range(H):
        assert torch.equal(after.keys[head], both[head, at[head]])
    assert torch.equal(again.keys[0], both[0, [7, 39]])
    assert after.bits == again.bits == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_extremes(dtype: torch.dtype) -> None:
    given = entries(35).to(dtype) * (1e4 if dtype == torch.float16 else 1e6)
    for bits in (8, 4, 2):
        for per_channel in (False, True):
            back = pack(given, bits, per_channel).unpack()
            assert back.dtype == dtype
            assert bool(back.isfinite().all())
    constant = torch.full((1, 3, 4), 0.1, dtype=dtype)
    torch.testing.assert_close(pack(constant, 2, True).unpack(), constant, rtol=1e-3, atol=0)
    assert pack(given[:, :0], 4, True).unpack().shape == (H, 0, D)


def test_sixteen_bits() -> None:
    storage = KVStorage(entries(9), entries(9))
    halved = storage.quantised(16, None, movable=False)
    assert torch.equal(halved.keys, storage.keys.bfloat16().float())
    assert halved.read_dtype == torch.float32
    small = KVStorage(entries(9).half(), entries(9).half())
    assert small.quantised(16, None, movable=False).stored_keys is small.stored_keys


@pytest.mark.parametrize("bits", [0, 3, 32, True, 4.5, "4"])
def test_other_sizes_are_refused(bits) -> None:
    with pytest.raises(ValueError, match=r"cache_bits=.* must be one of 16, 8, 4, 2"):
        check_bits(bits)
