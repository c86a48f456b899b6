"""What is said when all is there."""

from __future__ import annotations

import json
import shlex

from deploy.welcome import welcome
from kvstore.cluster import Adapter, ClusterConfig, Model


def test_a_first_request_can_be_pasted() -> None:
    config = ClusterConfig(model=Model(name="base"))
    text = welcome(config, "kvf-1")
    command = text[text.index("curl") : text.index("Ctrl-C")].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[1] == "http://127.0.0.1:8000/v1/chat/completions"
    assert "Authorization: Bearer kvf-1" in words
    assert json.loads(words[-1])["model"] == "base"
    assert "adapters" not in text
    assert "as in the file" in welcome(config, "")


def test_adapters_are_named() -> None:
    adapters = tuple(Adapter(name=name, path="/x") for name in ("poet", "clerk"))
    text = welcome(ClusterConfig(model=Model(name="base"), adapters=adapters), "")
    assert "  model     base\n  adapters  poet, clerk\n\n" in text
