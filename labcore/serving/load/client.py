"""Asking a server that speaks OpenAI's completions API, and writing down when each token came.

Prompts are sent as token ids and answers are held to their planned length (`ignore_eos`), so that a workload
means the same work everywhere. Servers differ; `Client.prepare` finds out with a request of a few tokens what
this one understands, and says in one sentence what it cannot do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from labcore.errors import LabError
from labcore.serving.load.stream import Answer, BadStream, lines, read_stream
from labcore.serving.metrics import RequestRecord
from labcore.serving.workload import Arrival

CONNECT_S = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # never through a proxy that the environment names
RETRY_S = 1.0  # where a 429 names no time
PROBE_TOKENS = 4
REFUSED = (400, 422)  # the server read the request and does not want it
WORDS = ("the", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with")


class LoadTestError(LabError):
    """A server that cannot be load-tested: unreachable, without models, a wrong key, no such model."""


@dataclass(frozen=True)
class Dialect:
    """What a server understands. ids: prompts as token ids; usage: it counts tokens at a stream's end.

    listed: each event can list its tokens, so that those which come together are not taken for one.
    """

    ids: bool = True
    ignore_eos: bool = True
    usage: bool = True
    listed: bool = True


@dataclass
class Client:
    """One server. Use it as `async with Client(url) as client: await client.prepare()`.

    url: with or without http:// and /v1. model: None takes the first that the server names. timeout_s: for
    one whole answer, from when it is sent. connections: requests at once at most; others wait, and their
    latency counts from when they were due. retry: a 429 is tried again after its Retry-After, not counted.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    timeout_s: float = 300.0
    connections: int = 1024
    retry: bool = False
    ignore_eos: bool = True
    dialect: Dialect = Dialect()
    max_model_len: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.url = base_url(self.url)
        self.dialect = replace(self.dialect, ignore_eos=self.ignore_eos)

    async def __aenter__(self) -> Client:
        self._slots = asyncio.Semaphore(self.connections)
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(None, connect=CONNECT_S),  # an answer's own limit is timeout_s
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.connections),
                trust_env=httpx.URL(self.url).host not in LOOPBACK,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise LoadTestError(f"{self.url} is no address: {error}; write http://HOST:PORT.") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def prepare(self) -> None:
        """Choose the model, and learn the server's dialect from a request of a few tokens.

        Raises LoadTestError where no load test is possible.
        """
        cards = await self._cards()
        names = [card["id"] for card in cards]
        if self.model is None:
            self.model = names[0]
        elif self.model not in names:
            raise LoadTestError(f"{self.url} serves {', '.join(names)}, not {self.model}.")
        length = cards[names.index(self.model)].get("max_model_len")
        self.max_model_len = length if isinstance(length, int) else None
        await self._probe()

    def require_room(self, arrivals: Sequence[Arrival]) -> None:
        """Raise LoadTestError where a request is longer than the server says it can be."""
        longest = max(arrival.prompt_tokens + arrival.output_tokens for arrival in arrivals)
        if self.max_model_len is not None and longest > self.max_model_len:
            raise LoadTestError(
                f"The longest request has {longest:,} tokens and {self.model} takes {self.max_model_len:,}; "
                "bound the lengths, such as exp:128:1-256."
            )

    async def complete(self, arrival: Arrival, start_s: float, clock: Callable[[], float]) -> RequestRecord:
        """Send one request, read its answer as it streams, never raise for what a server does wrong.

        start_s: when it was due, on `clock`.
        """
        async with self._slots:
            sent_s, answer = clock(), Answer()
            try:
                async with asyncio.timeout(self.timeout_s):
                    error, detail = await self._answered(arrival, answer, clock)
            except TimeoutError:
                error, detail = "timeout", f"no whole answer within {self.timeout_s:g} s"
            except BadStream as bad:
                error, detail = bad.kind, str(bad)
            except (httpx.ConnectError, httpx.ConnectTimeout) as failed:
                error, detail = "no connection", str(failed)
            except (httpx.HTTPError, httpx.StreamError) as failed:
                error, detail = "disconnected", _said(failed)
        return answer.record(arrival, start_s, sent_s, clock(), error, detail)

    async def _answered(
        self, arrival: Arrival, answer: Answer, clock: Callable[[], float]
    ) -> tuple[str | None, str]:
        body = request_body(arrival, self.model or "", self.dialect)
        while True:
            async with self._http.stream("POST", "completions", json=body) as response:
                if response.status_code == httpx.codes.OK:
                    await read_stream(lines(response.aiter_bytes()), answer, clock)
                    return None, ""
                await response.aread()
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS or not self.retry:
                return f"http {response.status_code}", message(response)
            await asyncio.sleep(_retry_after(response))

    async def _cards(self) -> list[dict[str, Any]]:
        response = await self._ask("GET", "models")
        if response.status_code != httpx.codes.OK:
            raise LoadTestError(f"{self.url}models answers {response.status_code}: {message(response)}")
        try:
            cards = [card for card in response.json()["data"] if isinstance(card["id"], str)]
        except (ValueError, KeyError, TypeError):
            raise LoadTestError(f"{self.url}models answers with what is no list of models.") from None
        if not cards:
            raise LoadTestError(f"{self.url} serves no model; start one, or name another address.")
        return cards

    async def _probe(self) -> None:
        """Ask for two tokens; what the server refuses is left out, and then asked again."""
        arrival = Arrival("probe", 0.0, PROBE_TOKENS, 2, tuple(range(10, 10 + PROBE_TOKENS)))
        while True:
            body = request_body(arrival, self.model or "", self.dialect)
            response = await self._ask("POST", "completions", json=body)
            if response.status_code == httpx.codes.NOT_FOUND:
                raise LoadTestError(f"{self.url}completions answers 404: {message(response)}")
            if response.status_code not in REFUSED:
                return  # understood; what is busy or broken is for the test to count
            self.dialect = simpler(self.dialect, response, self.url)

    async def _ask(self, method: str, path: str, **settings: Any) -> httpx.Response:
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await self._http.request(method, path, **settings)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL) as error:
            raise LoadTestError(f"No server answers at {self.url}: {error}; is it running?") from None
        except httpx.HTTPError as error:
            raise LoadTestError(f"{self.url}{path} cannot be read: {_said(error)}.") from None
        except TimeoutError:
            raise LoadTestError(f"{self.url}{path} did not answer within {self.timeout_s:g} s.") from None
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            given = "the given key" if self.api_key else "requests without a key"
            raise LoadTestError(f"{self.url} refuses {given}; set --api-key or OPENAI_API_KEY.")
        return response


def base_url(url: str) -> str:
    """`host:8000`, `http://host:8000/` and `http://host:8000/v1` all mean `http://host:8000/v1/`."""
    whole = url if "://" in url else f"http://{url}"
    return f"{whole.rstrip('/').removesuffix('/v1')}/v1/"


def request_body(arrival: Arrival, model: str, dialect: Dialect) -> dict[str, Any]:
    """The JSON of one greedy, streamed completion."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(arrival.prompt) if dialect.ids else words(arrival.prompt),
        "max_tokens": arrival.output_tokens,
        "temperature": 0.0,
        "stream": True,
    }
    if dialect.ignore_eos:
        body["ignore_eos"] = True
    if dialect.usage:
        body["stream_options"] = {"include_usage": True}
    if dialect.listed:
        body["return_token_ids"] = True
    return body


def words(tokens: Sequence[int]) -> str:
    """Short English words instead of tokens, about as many: for servers that take text only."""
    return " ".join(WORDS[token % len(WORDS)] for token in tokens)


def simpler(dialect: Dialect, refusal: httpx.Response, url: str) -> Dialect:
    """What to try after a refusal. Raises LoadTestError where nothing is left that could be left out."""
    if dialect.ignore_eos and "ignore_eos" in refusal.text:
        raise LoadTestError(f"{url} refuses ignore_eos; with --no-ignore-eos answers may end early.")
    if dialect.usage and "stream_options" in refusal.text:
        return replace(dialect, usage=False)
    if dialect.listed and "return_token_ids" in refusal.text:
        return replace(dialect, listed=False)
    if dialect.ids:
        return replace(dialect, ids=False)
    raise LoadTestError(f"{url} refuses a plain completion: {message(refusal)}")


def message(response: httpx.Response) -> str:
    """What an error's body says, in one line, cut to a readable length."""
    try:
        data = response.json()
        error = data.get("error", data.get("detail", data.get("message", data)))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    line = " ".join((text if isinstance(text, str) else json.dumps(text)).split())
    return line[:300] or response.reason_phrase


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(float(response.headers["retry-after"]), 0.0)
    except (KeyError, ValueError):  # missing, or a date
        return RETRY_S
