"""What a tokenizer.json and the settings beside it mean for prompts, and what is no tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import processors

from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.tokenizer import Tokenizer
from tests.spellings import byte_level


def save(library: tokenizers.Tokenizer, folder: Path, **settings_: object) -> Path:
    library.save(str(folder / "tokenizer.json"))
    if settings_:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder / "tokenizer.json"


def with_template(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    bos = library.token_to_id("<|story|>")
    library.post_processor = processors.TemplateProcessing(
        "<|story|> $A", special_tokens=[("<|story|>", bos)]
    )
    return library


def test_first_token_by_setting(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(save(byte_level(), tmp_path, bos_token="<|story|>", add_bos_token=True))
    assert tokenizer.adds_bos
    assert tokenizer.encode("cat", add_bos=True) == [tokenizer.bos_id, *tokenizer.encode("cat")]
    assert tokenizer.encode("", add_bos=True) == [tokenizer.bos_id]


def test_first_token_by_the_tokenizers_own_template(tmp_path: Path) -> None:
    path = save(with_template(byte_level()), tmp_path, bos_token={"content": "<|story|>"})
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.adds_bos
    assert tokenizer.encode("cat", add_bos=True).count(tokenizer.bos_id) == 1
    assert tokenizer.bos_id not in tokenizer.encode("cat")


def test_a_setting_overrules_the_template(tmp_path: Path) -> None:
    path = save(with_template(byte_level()), tmp_path, bos_token="<|story|>", add_bos_token=False)
    assert not Tokenizer.from_file(path).adds_bos


def test_first_token_from_the_models_configuration(tmp_path: Path) -> None:
    library = with_template(byte_level())
    config = ModelConfig(8, 1, 1, 1, 8, 8, 302, bos_token_id=library.token_to_id("<|story|>"))
    path = save(library, tmp_path)
    assert Tokenizer.from_file(path, config).adds_bos
    assert Tokenizer.from_file(path).bos_id is None


def test_without_a_first_token_none_is_added(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(save(byte_level(), tmp_path, bos_token=None, add_bos_token=True))
    assert not tokenizer.adds_bos
    assert tokenizer.encode("cat", add_bos=True) == tokenizer.encode("cat")


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    library = byte_level()
    library.enable_truncation(2)
    library.enable_padding(length=64)
    tokenizer = Tokenizer.from_file(save(library, tmp_path))
    assert tokenizer.decode(tokenizer.encode("the cat sat on the mat")) == "the cat sat on the mat"


def test_a_prompt_that_begins_with_the_first_token_gets_no_second_one(tmp_path: Path) -> None:
    """As those that were copied from a chat template do; no model has seen two."""
    tokenizer = Tokenizer.from_file(save(byte_level(), tmp_path, bos_token="<|story|>", add_bos_token=True))
    written = tokenizer.encode("<|story|>cat", add_bos=True)
    assert written == tokenizer.encode("cat", add_bos=True) == tokenizer.encode("<|story|>cat")
    assert tokenizer.encode("<|end|>cat", add_bos=True)[0] == tokenizer.bos_id


def test_dropout_of_training_is_not_applied(tmp_path: Path) -> None:
    library = byte_level()
    expected = library.encode("the cat sat on the mat").ids
    library.model.dropout = 0.9
    tokenizer = Tokenizer.from_file(save(library, tmp_path))
    assert all(tokenizer.encode("the cat sat on the mat") == expected for _ in range(5))


def test_a_folder_may_have_no_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None
    with pytest.raises(CheckpointError, match="no tokenizer file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_settings_that_are_not_json(tmp_path: Path) -> None:
    path = save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not valid JSON"):
        Tokenizer.from_file(path)


def test_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save(
        with_template(byte_level()),
        tmp_path,
        bos_token="<|story|>",
        tokenizer_class="PreTrainedTokenizerFast",
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    text = "The cat's 日本 café 🙂\n\n  end"
    assert ours.encode(text, add_bos=ours.adds_bos) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == theirs.decode(
        theirs(text)["input_ids"], skip_special_tokens=True
    )
    assert ours.vocab_size == len(theirs)
