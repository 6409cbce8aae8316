"""`labcore serve`: a model behind OpenAI's HTTP API, until Ctrl-C."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from labcore.serving.engine import LLMEngine


class PolicyName(StrEnum):
    continuous = "continuous"
    static = "static"
    dynamic = "dynamic"
    one_by_one = "one-by-one"


def serve(
    model: Annotated[str, typer.Argument(help="story, a folder, a Hub id, shape:NAME.")] = "story",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LABCORE_API_KEY", help="What clients must send as Bearer token.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients may ask for, as behind a proxy; may be given again."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients.")] = None,
    policy: Annotated[PolicyName, typer.Option(help="Who runs together.")] = PolicyName.continuous,
    num_blocks: Annotated[int | None, typer.Option(min=1, help="Blocks of the KV cache.")] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Positions of a block.")] = 16,
    max_num_seqs: Annotated[int, typer.Option(help="Requests that run at once.")] = 32,
    token_budget: Annotated[int, typer.Option(help="Tokens of one step.")] = 512,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of a prompt and its answer.")] = None,
    prefix_caching: Annotated[bool, typer.Option(help="Share the blocks of equal beginnings.")] = True,
    speculate: Annotated[
        str | None, typer.Option(help="Guess tokens: 'lookup' from the text, or a smaller model's name.")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="Quantize the weights first: int8, int4, nf4…")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")] = "auto",
    max_body_bytes: Annotated[int, typer.Option(help="Of one request.")] = 2**20,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Of one prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of one answer.")] = None,
    max_concurrency: Annotated[int, typer.Option(help="Answers that run or wait at once.")] = 256,
    max_connections: Annotated[int, typer.Option(help="Connections that are open at once.")] = 2048,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds to finish what runs, when stopped.")] = 30.0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="One line for each.")] = False,
) -> None:
    """Serve a model over HTTP as OpenAI does: /v1/completions, /v1/chat/completions, /health, /metrics."""
    from labcore.serving.hosts import ensure_names

    server = _server()
    limits = server.Limits(
        max_body_bytes=max_body_bytes, max_prompt_tokens=max_prompt_tokens, max_tokens=max_tokens,
        max_concurrency=max_concurrency, max_connections=max_connections, request_timeout_s=timeout,
        grace_s=grace,
    )  # fmt: skip
    ensure_names(allowed_host or ())
    with server.bind(host, port) as sock:  # before the model is loaded: a port that is taken shows at once
        engine = _engine(
            model, quantize, speculate, device, dtype, policy=policy.value, num_blocks=num_blocks,
            block_size=block_size, max_num_seqs=max_num_seqs, token_budget=token_budget,
            max_model_len=max_model_len, prefix_caching=prefix_caching,
        )  # fmt: skip
        app = server.create_app(
            engine, name=name, limits=limits, api_key=api_key, allowed_hosts=allowed_host or ()
        )
        typer.echo(_banner(engine, server.url_of(sock), app.state.service.name))
        if api_key is None and not ipaddress.ip_address(sock.getsockname()[0]).is_loopback:
            typer.echo("Whoever reaches this machine may use the model; --api-key asks for a key.", err=True)
        level = "info" if log_requests else "warning"
        server.Server(app, log_level=level, access_log=log_requests).run(sockets=[sock])


def _server() -> Any:
    """The packages of the extra. Raises LabError, which names it, where one is missing."""
    try:
        from labcore.serving import server
    except ModuleNotFoundError as missing:
        from labcore.errors import ConfigError

        raise ConfigError(
            f"labcore serve needs the package {missing.name}, which the extra 'serve' brings: "
            "pip install 'labcore[serve]'."
        ) from None
    return server


def _engine(
    name: str, quantize: str | None, speculate: str | None, device: str, dtype: str, **settings: Any
) -> LLMEngine:
    """A loaded model in an engine."""
    import labcore
    from labcore.generation.speculation import drafter
    from labcore.serving.engine import LLMEngine

    model = labcore.load(name, device=device, dtype=dtype)
    if model.random_weights:
        typer.echo(f"{name} has random weights: its speed is real, its text means nothing.", err=True)
    if quantize:
        labcore.quantize(model, quantize)
    engine = LLMEngine(model, speculation=drafter(speculate, model), overlap="auto", **settings)
    engine.warm_up()
    return engine


def _banner(engine: LLMEngine, url: str, name: str) -> str:
    stats = engine.stats
    return (
        f"{name} at {url}/v1, up to {engine.max_model_len:,} tokens a request, {stats.blocks_total:,} "
        "blocks; Ctrl-C stops."
    )
