"""Keys and values in 8, 4 or 2 bits, or in fp8; the newest positions in full precision where asked for.

Two schemes. "token": every token's key and value apart, in groups of channels. "kivi" (Liu et al. 2024):
values as before, but keys per channel over groups of tokens, because some channels of the keys are much
larger than the rest in every token; a group can be rounded only once it is complete, so the newest tokens
wait in full precision.

Groups begin at each sequence's own first token: behind p positions of padding, a sequence is stored -p mod
group entries further on, so that its groups are those that it has alone.

A step attends to what was rounded in earlier steps and to its own keys and values as they are. One layer at
a time is read back into full precision for that; it is gone before the next layer's turn.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from labcore.cache.base import KVCache
from labcore.errors import ConfigError
from labcore.kernels import packing
from labcore.perf.costs import CacheTraffic

Stored = dict[str, Tensor]
Rows = Tensor | slice
EVERY = slice(None)


class QuantizedCache(KVCache):
    """bits: 8, 4, 2 or "fp8". scheme: "token" or "kivi". group: numbers that share a scale.

    residual: newest positions kept in full precision (default: 0, or a group for "kivi").
    """

    kind: ClassVar[str] = "quantized"
    rewinds: ClassVar[bool] = False  # what was rounded stays so
    settings: ClassVar[tuple[str, ...]] = ("bits", "scheme", "group", "residual")

    def __init__(
        self,
        *args: Any,
        bits: int | str = 8,
        scheme: str = "token",
        group: int | None = None,
        residual: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.bits, self.scheme = bits, scheme
        self.group = min(32, self.config.head_dim) if group is None else group
        self._step = self.group if scheme == "kivi" else 1  # positions that are rounded together
        self.residual = (self._step if scheme == "kivi" else 0) if residual is None else residual
        self._check()
        pads = [0] * self.batch_size if self.padding is None else self.padding.tolist()
        self._shifts = [-pad % self._step for pad in pads]  # entries that each row is stored further on
        self._rounded = dict.fromkeys(self._shifts, 0)  # shift -> entries in codes; the others wait
        self._rows = _rows_of(self._shifts, self.device)
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._reserve(-(-(self._limit + max(self._shifts)) // self._step) * self._step)

    def _check(self) -> None:
        size = self.config.head_dim
        if self.bits not in (8, 4, 2, "fp8"):
            raise ConfigError(f"bits is {self.bits!r}; a quantized cache has 8, 4 or 2, or 'fp8'.")
        if self.scheme not in ("token", "kivi") or (self.scheme == "kivi" and self.bits == "fp8"):
            raise ConfigError(
                f"scheme is {self.scheme!r} at bits={self.bits}; choose 'token', or 'kivi' with 8, 4 or 2."
            )
        if self.group < 1 or size % self.group:
            raise ConfigError(
                f"Groups of {self.group} do not divide the {size} channels of a head; choose a divisor."
            )
        if self.bits != "fp8" and size * self._width() % 8:
            raise ConfigError(f"{size} channels of {self.bits} bits do not fill whole bytes; use 8 bits.")
        if self.residual < 0 or self.residual % self._step:
            raise ConfigError(
                f"residual is {self.residual}; it must be a multiple of {self._step} (0 is one), because so "
                "many positions are rounded together."
            )

    def _width(self) -> int:
        return 8 if self.bits == "fp8" else int(self.bits)

    def _reserve(self, positions: int) -> None:
        self._refuse_if_too_big(
            round(self._bytes_for(positions) * self.bits_per_element / self._plain_bits())
        )
        layers = range(self.config.num_hidden_layers)
        self.keys = [self._stored(positions, self.scheme == "kivi") for _ in layers]
        self.values = [self._stored(positions, False) for _ in layers]
        waiting = (2, *self._layer_shape(self.residual + self._step - 1))
        self.waiting = [torch.zeros(waiting, device=self.device, dtype=self.dtype) for _ in layers]

    def _stored(self, positions: int, by_channel: bool) -> Stored:
        """Codes and scales of one layer's keys or values, with room for so many positions."""
        batch, heads, _, size = self._layer_shape(positions)
        at: dict[str, Any] = {"device": self.device}
        if by_channel:
            scales = (batch, heads, positions // self.group, 1, size)
        else:
            scales = (batch, heads, positions, size // self.group, 1)
        if self.bits == "fp8":
            codes = torch.zeros(batch, heads, positions, size, dtype=packing.FP8, **at)
            return {"codes": codes, "scale": torch.zeros(scales, dtype=torch.float32, **at)}
        codes = torch.zeros(batch, heads, positions, size * self._width() // 8, dtype=torch.uint8, **at)
        names = ("scale", "lowest")
        return {"codes": codes} | {name: torch.zeros(scales, dtype=torch.float16, **at) for name in names}

    # What it answers

    @property
    def bits_per_element(self) -> float:
        """Bits that a stored number takes, its share of scale and lowest value included."""
        return self._width() + 32 / self.group

    def _plain_bits(self) -> int:
        return 8 * torch.empty(0, dtype=self.dtype).element_size()

    @property
    def traffic(self) -> CacheTraffic:
        """Codes are read, and written out in full precision before attention reads them."""
        return CacheTraffic(bits=self.bits_per_element, unpacks=True)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and of what waits in full precision."""
        stored = sum(tensor.nbytes for side in (*self.keys, *self.values) for tensor in side.values())
        return stored + sum(tensor.nbytes for tensor in self.waiting)

    @property
    def capacity(self) -> int:
        """Positions reserved per sequence."""
        return self._limit

    # A step

    def begin(self, n: int) -> Tensor:
        """As in the contract. What an interrupted step left pending is forgotten."""
        self._pending.clear()
        return super().begin(n)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What is held, read back, then what waits, then the new positions."""
        self._pending[layer] = (k, v)
        parts = {shift: self._row_parts(layer, shift, k, v) for shift in self._rows}
        if len(parts) == 1:
            return next(iter(parts.values()))
        keys, values = (x.new_empty(*x.shape[:2], self._length + x.shape[2], x.shape[3]) for x in (k, v))
        for shift, (some_keys, some_values) in parts.items():
            keys[self._rows[shift]], values[self._rows[shift]] = some_keys, some_values
        return keys, values

    def _row_parts(self, layer: int, shift: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`update` for the rows of one shift."""
        rows, done = self._rows[shift], self._rounded[shift]
        waiting = self.waiting[layer][:, rows, :, : self._length + shift - done]
        keys = torch.cat([self._read(self.keys[layer], done, rows), waiting[0], k[rows]], dim=2)
        values = torch.cat([self._read(self.values[layer], done, rows), waiting[1], v[rows]], dim=2)
        return keys[:, :, shift:], values[:, :, shift:]

    def commit(self) -> None:
        """Round what need not wait any longer."""
        for shift, rows in self._rows.items():
            waits = self._length + shift - self._rounded[shift]
            due = max(0, waits + self._new - self.residual) // self._step * self._step
            for layer, (k, v) in self._pending.items():
                held = self.waiting[layer][:, rows, :, :waits]
                all_ = torch.cat([held, torch.stack([k[rows], v[rows]])], dim=3)
                if due:
                    self._write(self.keys[layer], all_[0, :, :, :due], shift)
                    self._write(self.values[layer], all_[1, :, :, :due], shift)
                self.waiting[layer][:, rows, :, : all_.shape[3] - due] = all_[:, :, :, due:]
            self._rounded[shift] += due
        self._pending.clear()
        super().commit()

    def _write(self, side: Stored, x: Tensor, shift: int) -> None:
        """Round x (rows of this shift, h_kv, n, d) behind what is rounded already."""
        by_channel, done = _by_channel(side), self._rounded[shift]
        for name, part in self._rounded_parts(x, by_channel).items():
            start = done // self.group if by_channel and name != "codes" else done
            side[name][self._rows[shift], :, start : start + part.shape[2]] = part

    def _rounded_parts(self, x: Tensor, by_channel: bool) -> Stored:
        grouped = x.unflatten(2, (-1, self.group)) if by_channel else x.unflatten(-1, (-1, self.group))
        dim = 3 if by_channel else 4
        if self.bits == "fp8":
            codes, scale = packing.to_fp8(grouped, dim)
            return {"codes": codes.flatten(3), "scale": scale}
        codes, scale, lowest = packing.quantize(grouped, self._width(), dim)
        flat = codes.flatten(2, 3) if by_channel else codes.flatten(3)
        return {"codes": packing.pack(flat, self._width()), "scale": scale, "lowest": lowest}

    def _read(self, side: Stored, n: int, rows: Rows = EVERY) -> Tensor:
        """The first n entries of these rows in full precision, (rows, h_kv, n, d)."""
        by_channel = _by_channel(side)
        groups = n // self.group if by_channel else n
        codes = side["codes"][rows, :, :n]
        scale = side["scale"][rows, :, :groups]
        if self.bits == "fp8":
            return (codes.to(self.dtype).unflatten(-1, (-1, self.group)) * scale.to(self.dtype)).flatten(3)
        whole = packing.unpack(codes, self._width())
        grouped = (
            whole.unflatten(2, (-1, self.group)) if by_channel else whole.unflatten(-1, (-1, self.group))
        )
        plain = packing.dequantize(grouped, scale, side["lowest"][rows, :, :groups], self.dtype)
        return plain.flatten(2, 3) if by_channel else plain.flatten(3)

    # Histories

    def truncate(self, n: int) -> None:
        """Forget everything from position n on. The rest of a cut group waits again, as it was rounded."""
        super().truncate(n)
        for shift, rows in self._rows.items():
            end = n + shift
            if end < self._rounded[shift]:
                self._rounded[shift] = whole = end // self._step * self._step
                for layer, waiting in enumerate(self.waiting):
                    for part, side in zip(waiting, (self.keys[layer], self.values[layer]), strict=True):
                        cut = self._read(side, whole + self._step, rows)[:, :, whole:end]
                        part[rows, :, : end - whole] = cut

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows."""
        for sides in (self.keys, self.values):
            for side in sides:
                side.update({name: tensor[rows] for name, tensor in side.items()})
        self.waiting = [tensor[:, rows] for tensor in self.waiting]
        self.padding = self.padding[rows] if self.padding is not None else None
        self._shifts = [self._shifts[row] for row in rows.tolist()]
        self._rows = _rows_of(self._shifts, self.device)
        self.batch_size = len(rows)


def _rows_of(shifts: list[int], device: torch.device) -> dict[int, Rows]:
    """Shift -> the rows that have it."""
    if len({*shifts}) == 1:
        return {shifts[0]: EVERY}
    return {
        shift: torch.tensor([row for row, own in enumerate(shifts) if own == shift], device=device)
        for shift in {*shifts}
    }


def _by_channel(side: Stored) -> bool:
    """Whether a scale belongs to a channel of some tokens, rather than to some channels of a token."""
    return side["scale"].shape[-1] > 1


def rounded(cache: QuantizedCache, x: Tensor, keys: bool) -> Tensor:
    """x (B, h_kv, n, d) as the cache would read it back: the reference that its attention is held to.

    n: a multiple of the group for the keys of "kivi".
    """
    by_channel = keys and cache.scheme == "kivi"
    parts = cache._rounded_parts(x, by_channel)
    return cache._read(parts, x.shape[2])
