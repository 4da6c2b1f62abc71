"""What a causal or a cloze model is shown of its rows: places, moments, masks.

Rows are padded on the right. Letters: ``B`` rows of a batch, ``L`` places of a row.
"""

import torch
from torch import Tensor


def valid_places(length: Tensor, width: int) -> Tensor:
    """True at the first ``length`` places, Bool[B, width], for Int64[B]."""
    return torch.arange(width, device=length.device) < length.unsqueeze(1)


def append_event(sequence: Tensor, length: Tensor, value: Tensor, max_length: int) -> Tensor:
    """Put one more event behind each row's last; a full row loses its oldest.

    Parameters
    ----------
    sequence : Tensor[B, L]
        Items or times, ``L <= max_length``.
    length : Int64[B]
        Events of each row.
    value : Tensor[B]
        The new event's item or time.
    max_length : int
        Most events that a row may hold.

    Returns
    -------
    Tensor[B, min(L + 1, max_length)]
        Rows of ``min(length + 1, max_length)`` events.
    """
    extended = torch.cat([sequence, torch.zeros_like(sequence[:, :1])], 1)
    extended = extended.scatter(1, length.unsqueeze(1), value.to(sequence.dtype).unsqueeze(1))
    place = torch.arange(min(extended.size(1), max_length), device=sequence.device)
    return extended.gather(1, place + (length >= max_length).long().unsqueeze(1))


def next_times(time: Tensor, length: Tensor, last: Tensor) -> Tensor:
    """Time of the event after each place: what a causal model is asked for.

    Parameters
    ----------
    time : Tensor[B, L]
        Times of the events.
    length : Int64[B]
        Events of each row.
    last : Tensor[B]
        Time of the event after the row's last.
    """
    shifted = time.roll(-1, 1)
    return shifted.scatter(1, last_place(length), last.to(time.dtype).unsqueeze(1))


def last_place(length: Tensor) -> Tensor:
    """Index of each row's last event, Int64[B, 1]; 0 for an empty row."""
    return (length - 1).clamp(min=0).unsqueeze(1)


def draw_cloze_mask(maskable: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """Choose the events that a cloze model has to guess.

    Each event that may be masked is masked with probability ``ratio``. Of a row with two or more
    events, at least one stays known and, if any may be masked, at least one is. Draws from torch's
    global random state.

    Parameters
    ----------
    maskable, valid : Bool[B, L]
        Events that may be masked, and all events.
    ratio : float
        Probability of each.

    Returns
    -------
    Bool[B, L]
        True at the masked events.
    """
    draw = torch.rand(valid.shape, device=valid.device)
    lowest = draw.masked_fill(~maskable, 2.0)
    masked = lowest < ratio
    first = torch.zeros_like(valid).scatter(1, lowest.argmin(1, keepdim=True), True)
    masked |= first & maskable & ~masked.any(1, keepdim=True)
    highest = draw.masked_fill(~valid, -1.0)
    spared = torch.zeros_like(valid).scatter(1, highest.argmax(1, keepdim=True), True)
    none_known = (masked | ~valid).all(1, keepdim=True)
    return masked & ~(spared & none_known)


def known_times(time: Tensor, known: Tensor) -> Tensor:
    """Times that give nothing away of events that are not known.

    Parameters
    ----------
    time : Tensor[B, L]
        Times of the events.
    known : Bool[B, L]
        Events that are neither masked nor padding.

    Returns
    -------
    Tensor[B, L]
        The time of the last known event up to each place or, where there is none, of the first
        known one.
    """
    place = torch.arange(time.size(1), device=time.device).expand_as(time)
    latest = place.masked_fill(~known, -1).cummax(1).values
    first = known.long().argmax(1, keepdim=True)
    return time.gather(1, torch.where(latest < 0, first, latest))
