"""Secrets are known by their names and by their looks, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from orbiter.train.redact import (
    MASK,
    is_secret_name,
    mask_arguments,
    mask_named,
    mask_private,
    mask_text,
    secrets_of_the_environment,
)

SECRETS = {
    "OpenAI": "sk-" + "a1" * 12,
    "Groq": "gsk_" + "a1" * 12,
    "Hugging Face": "hf_" + "a1" * 12,
    "GitHub": "ghp_" + "a1" * 12,
    "GitLab": "glpat-" + "a1" * 10,
    "AWS": "AKIA" + "A1" * 8,
    "Slack": "xoxb-" + "1" * 12,
    "JWT": "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "PEM": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_known_kind_of_secret_is_masked_in_a_text(kind: str) -> None:
    assert mask_text(f"before {SECRETS[kind]} after") == f"before {MASK} after"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://h/v1?api_key=abc&model=m", f"https://h/v1?api_key={MASK}&model=m"),
        ("https://h/v1?access_token=abc#top", f"https://h/v1?access_token={MASK}#top"),
        ("run --api-key abc --model m", f"run --api-key {MASK} --model m"),
        ("run --token=abc", f"run --token={MASK}"),
        ("postgres://user:pass@host/db", f"postgres://{MASK}@host/db"),
        ("mine is hunter22", f"mine is {MASK}"),
    ],
)
def test_a_secret_is_known_by_what_it_is_called(text: str, masked: str) -> None:
    assert mask_text(text, ["hunter22"]) == masked


@pytest.mark.parametrize(
    "text",
    ["https://h/search?q=api_key", "sort --key name", "sk-short", "a task-based skill", "x=1&y=2"],
)
def test_ordinary_text_stays(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    "name", ["api_key", "apiKey", "api-key", "Authorization", "token", "hf_token"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["messages_key", "max_tokens", "token_ids", "keys", "author", "tokenizer"]
)
def test_names_that_only_resemble_them(name: str) -> None:
    assert not is_secret_name(name)


def test_a_value_after_its_option_is_masked() -> None:
    given = ["run", "--api-key", "abc", "--model", "m"]
    assert mask_arguments(given) == ["run", "--api-key", MASK, "--model", "m"]


def test_keys_of_a_remote_server_are_masked_and_schemas_are_not() -> None:
    mcp = {
        "type": "mcp",
        "server_url": "u",
        "authorization": "abc",
        "headers": {"Authorization": "Bearer abc", "X-Team": "t"},
    }
    schema = {
        "type": "function",
        "function": {
            "name": "fetch",
            "parameters": {
                "type": "object",
                "properties": {"headers": {"type": "object"}, "password": {"type": "string"}},
            },
        },
    }
    hidden = {**mcp, "authorization": MASK, "headers": {"Authorization": MASK, "X-Team": MASK}}
    assert mask_named([mcp, schema]) == [hidden, schema]


def test_variables_that_are_named_like_secrets_are_searched_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [
        "ORBITER_TRAIN_UPSTREAM_KEY",
        "AZURE_OPENAI_KEY",
        "MLFLOW_TRACKING_TOKEN",
        "DB_PASSWORD",
    ]
    for name in names:
        monkeypatch.setenv(name, f"value of {name}")
    monkeypatch.setenv("MONKEY", "an ordinary animal")
    found = secrets_of_the_environment()
    assert {f"value of {name}" for name in names} <= set(found)
    assert "an ordinary animal" not in found


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("see /home/ada/x and /Users/ada-b/y", "see /home/user/x and /Users/user/y"),
        (r"C:\Users\Ada\x and C:\\Users\\Ada\\x", r"C:\Users\user\x and C:\\Users\\user\\x"),
        ("/mnt/c/Users/ada/x", "/mnt/c/Users/user/x"),
        ("-Users-ada-shop", "-Users-user-shop"),
        ("mail ada.b+c@mail.test.org.", "mail user@example.com."),
        ("git clone git@github.com:a/b", "git clone git@github.com:a/b"),
        ("API_KEY=abcdef123456", "API_KEY=***"),
        ('{"api_key": "abcdef123456"}', '{"api_key": "***"}'),
        (r"{\"api_key\": \"abcdef123456\"}", r"{\"api_key\": \"***\"}"),
        ("password: hunter2hunter2", "password: ***"),
        ("STRIPE_KEY=sk0123456789abcdef", "STRIPE_KEY=***"),
        ("key sk-abcdefghijklmnopqrst", "key ***"),
    ],
)
def test_private_data_is_masked_and_masking_again_changes_nothing(text: str, masked: str) -> None:
    assert mask_private(text) == masked
    assert mask_private(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 4096000000",
        'api_key = os.environ["OPENAI_API_KEY"]',
        "password = getpass.getpass()",
        "def login(password: SecretStr) -> None: ...",
        "CACHE_KEY=user_profile_page",
        "https://example.com/home/about",
        "@dataclass(frozen=True)",
        "tokens=12345678",
        "/home/runner/work/x",
        "API_KEY=${API_KEY_FROM_VAULT}",
    ],
)
def test_code_and_addresses_that_are_not_private_stay(text: str) -> None:
    assert mask_private(text) == text
