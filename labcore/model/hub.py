"""Fetching a checkpoint from the Hugging Face Hub, the one place in labcore that opens a connection.

It is reached only when a Hub id was named. config.json comes first, so that a model that cannot be run or
does not fit is refused before its gigabytes are fetched. `HF_HUB_OFFLINE=1` and the usual cache are honoured.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

from labcore.errors import HubError
from labcore.model.checkpoint import INDEX, PICKLES, SINGLE
from labcore.model.quantized_folder import OLDER_FILES

# Not *.safetensors: some repositories hold the same weights twice, in another layout.
_SHARDS = ["model-*-of-*.safetensors", "gptq_model-*.safetensors", "gptq_model-*.safetensors.index.json"]
_WEIGHTS = [SINGLE, INDEX, *_SHARDS]
_SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *OLDER_FILES]


def fetch(repo: str, revision: str | None, progress: bool, accept: Callable[[Path], None]) -> Path:
    """The local folder of a Hub model, downloaded where it is not cached yet.

    accept: is handed config.json's path before anything large is fetched, and raises to refuse it.
    Raises HubError (no network, gated, not found, no safetensors, full disk) and ConfigError.
    """
    hub = _huggingface_hub()
    try:
        with nullcontext() if progress else _no_bars():
            accept(Path(hub.hf_hub_download(repo, "config.json", revision=revision)))
            folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[*_SMALL, *_WEIGHTS]))
            if not any(folder.glob("*.safetensors")):
                raise HubError(_no_safetensors(repo, hub.HfApi().list_repo_files(repo, revision=revision)))
    except Exception as error:
        if (sentence := _explain(repo, revision, error)) is None:
            raise
        raise HubError(sentence) from error
    return folder


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            "Loading by Hub id needs the package huggingface_hub, which is not installed; "
            "run pip install 'labcore[hub]'."
        ) from None
    return huggingface_hub


@contextmanager
def _no_bars() -> Iterator[None]:
    """The client's progress bars are switched for the whole process; leave the switch as it was."""
    from huggingface_hub import utils

    were_off = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            utils.enable_progress_bars()


def _no_safetensors(repo: str, files: list[str]) -> str:
    if any(name.endswith(PICKLES) for name in files):
        return (
            f"{repo} holds its weights only as pickle, which can run any code when opened; look for a "
            "repository or revision with model.safetensors."
        )
    return f"{repo} holds no {SINGLE} and no shards of one; choose a repository that has them."


def _explain(repo: str, revision: str | None, error: Exception) -> str | None:
    """One sentence for what the Hub's client raised, most special first; None for what is not its fault."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(
        error.__cause__, errors.HfHubHTTPError
    ):
        error = error.__cause__  # not cached, and the Hub itself failed
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: ask for access at {page}, then log in on this machine with `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"There is no folder {repo!r} here and no public model of that name on the Hub; "
            "check the spelling, or log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; see its branches and tags at {page}."
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is not a Hub id; write it as owner/name."
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)) or _is_network(error):
        return _no_network(repo)
    if isinstance(error, errors.EntryNotFoundError):
        return (
            f"{repo} has no config.json at revision {revision or 'main'}; choose a repository that has one."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"The Hub answered with an error for {repo} ({_first_line(error)}); try again later."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk is full while fetching {repo}; free some space, or set HF_HOME to a larger disk."
    return None


def _is_network(error: Exception) -> bool:
    """Connection and time-out errors of whichever HTTP library the installed client uses."""
    library = type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))
    return library or isinstance(error, (ConnectionError, TimeoutError))


def _no_network(repo: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            f"{repo} is not in this machine's Hub cache and HF_HUB_OFFLINE is set; unset it to download it."
        )
    return (
        f"There is no folder {repo!r} here, the Hub cannot be reached, and its cache does not hold the whole "
        "model; check the network, or load 'story', which needs none."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
