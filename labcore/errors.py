"""What went wrong, in the user's words.

Every error that labcore raises on purpose is a `LabError`: one sentence that says what is wrong, with
its numbers, and names the mend. Callers that show errors (the command line, the lessons) print the
sentence alone; anything that is not a `LabError` is a bug and keeps its traceback.
"""

from __future__ import annotations


class LabError(Exception):
    """Base of all errors a user can mend."""


class ConfigError(LabError):
    """A model's configuration is incomplete, contradictory or of an architecture we do not run."""


class CheckpointError(LabError):
    """A checkpoint cannot be read: not found, corrupt, pickled, a tensor missing, extra or misshapen."""


class HubError(LabError):
    """A model could not be fetched from the Hugging Face Hub: no network, gated, not found."""


class DeviceError(LabError):
    """A device or dtype that this machine (or this device) does not offer was asked for."""


class OutOfMemory(LabError):
    """A plan does not fit in the memory that is free; raised before anything is allocated."""


class PromptError(LabError):
    """A prompt is empty, too long for the model's context, or holds tokens that do not exist."""


class SamplingError(LabError):
    """A sampling setting lies outside of what it can mean."""


class NotFinite(LabError):
    """A model's logits are NaN or infinite, so that no token can be chosen."""


class CacheFull(LabError):
    """A KV cache has no room for the tokens of this step; what it held before is untouched."""


class NotSupported(LabError):
    """What this kind of cache cannot do without giving wrong attention; the message names one that can."""


class CatalogError(LabError):
    """A name that the catalogues do not hold; the message offers the nearest ones."""


class LessonError(LabError):
    """A lesson, exercise or parameter that does not exist."""


class ParallelError(LabError):
    """Processes that work together on one model: one of them failed, or there are too few devices."""


class KitError(LabError):
    """An offline kit that is damaged, unfinished or made for another machine, or has too little room."""
