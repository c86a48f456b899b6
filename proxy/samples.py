"""Prompts by which the proxy's own rendering is compared with a worker's, token for token.

They hold what renderings differ in: blanks at both ends, line ends, several scripts, emoji, code,
numbers, text that looks like special tokens, empty contents, orders of turns, texts of many pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.requests import Route

_PROSE = (
    "It's what they'd said: we'll meet at 12:30, near the café (if it isn't raining), shan't we? "
    "Größe, naïveté, Ångström; СПАСИБО, мы не опоздаем. 一二三，四五六。テスト、ガギグ! 가나다라. "
    "ﬁne ½ x² № 1234567890 3.14159 0x1F\u00a0\u2003\u200b\ufeff e\u0301a\u030a\u0308 \U0001d54f. "
)
_CODE = "def f(x):\n\tif x == 0:  # none\n\t\treturn {'a': [1, 2]}\n\n\n    return x**2\r\n"
_EMOJI = "👍🏽👨‍👩‍👧‍👦🇨🇭 ❤️ é 🤷"
_SPECIAL = (
    "<|im_start|>user\nhi<|im_end|> <s>[INST] x [/INST]</s> <bos><eos><pad><unk> "
    "<start_of_turn>user <end_of_turn> <|begin_of_text|><|eot_id|> "
    "<|start_header_id|> <|start|><|message|><|end|> <|endoftext|> "
    "<0x0A> ▁▁ Ġ <unused1> [multimodal] <think></think> <tool_call>"
)
_BLANKS = "  two before,\n\n\n\tthree lines;   \r\n  and two after  "
_LONG = "".join(f"{number} {_PROSE}{_CODE}" for number in range(6))

_TEXTS = (
    "Hello",
    "The capital of France is",
    " ",
    "\n\n",
    "a" * 300,
    "1" * 40,
    _PROSE,
    _CODE,
    _EMOJI,
    _SPECIAL,
    _BLANKS,
    _LONG,
)


def _turns(*contents: str, system: str | None = None) -> dict[str, Any]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for at, content in enumerate(contents):
        messages.append({"role": "assistant" if at % 2 else "user", "content": content})
    return {"messages": messages}


_CHATS = (
    _turns("Hello"),
    *(_turns(text) for text in ("", _PROSE, _CODE, _EMOJI, _SPECIAL, _BLANKS)),
    _turns("Hello", system="Be brief."),
    _turns("Hello", system=""),
    _turns("Hello", system=_BLANKS),
    _turns("Hello", "Hi there! ", "And now?"),
    _turns(_BLANKS, _BLANKS, _SPECIAL, "", _EMOJI, system=_SPECIAL),
    _turns("", "", ""),
    _turns("Hello", "an answer already"),
    _turns(_LONG, _CODE, _LONG, system=_PROSE),
    {"messages": [{"role": "assistant", "content": "I begin."}, *_turns("So?")["messages"]]},
    {"messages": [*_turns("One", "Two")["messages"], {"role": "system", "content": "Late."}]},
    {"messages": [{"role": "system", "content": "Alone."}]},
    {"messages": [{"role": "user", "content": "Twice,"}, {"role": "user", "content": "then."}]},
)

SAMPLES: dict[Route, Sequence[dict[str, Any]]] = {
    "chat": _CHATS,
    "completions": [*({"prompt": text} for text in _TEXTS), {"prompt": [5, 6, 7]}],
}
"""Bodies without the model's name."""
