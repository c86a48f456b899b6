"""One engine's way from a request to its prompt's tokens, done here: template, then tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from itertools import count
from typing import Any

from kvstore.errors import WireError
from kvstore.text_rules import TextRules
from proxy.plain import MOST_CHARS, Plain
from proxy.requests import Route
from proxy.templates import ChatTemplate
from proxy.tokenizing import TextTokenizer, unpack


class Content(Enum):
    """How messages reach a template: their content as text, or as a list with one part."""

    TEXT = 1
    PARTS = 2


_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of a description that is JSON, but no tokenizer's."""

_numbers = count()


class Rendering:
    """A worker's text rules, loaded. ``number`` names its vocabulary within this process."""

    def __init__(self, rules: TextRules) -> None:
        """Takes up to seconds. Raises WireError."""
        self.number = next(_numbers)
        try:
            self.tokenizer = TextTokenizer(bytes(rules.tokenizer))
        except _ODD as error:
            raise WireError(f"a tokenizer of no known shape: {type(error).__name__}") from None
        self._template: ChatTemplate | None = None
        if rules.chat_template is not None:
            try:
                self._template = ChatTemplate(rules.chat_template, rules.variables)
            except (WireError, SyntaxError):
                self._template = None

    def covers(self, route: Route) -> bool:
        """Whether ``route``'s prompts can be made of what the worker told."""
        return self._template is not None if route == "chat" else self.tokenizer.around is not None

    def text(self, prompt: Plain, content: Content) -> str | None:
        """The text whose tokens are the prompt's; None where the template refuses it."""
        if prompt.messages is None:
            return prompt.text
        if self._template is None:
            return None
        text = self._template.render([_message(one, content) for one in prompt.messages])
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            return None  # half a character, of the template's own
        return text if text is not None and 0 < len(text) <= 2 * MOST_CHARS else None

    def around(self, prompt: Plain) -> tuple[bytes, bytes] | None:
        """Tokens before and after the text's, packed; None where they are not known."""
        return (b"", b"") if prompt.messages is not None else self.tokenizer.around

    def tokens(self, prompt: Plain, content: Content) -> list[int] | None:
        """All of it at once; None where it cannot be done here. May take long."""
        if prompt.tokens is not None:
            return prompt.tokens if max(prompt.tokens) < self.tokenizer.limit else None
        text, around = self.text(prompt, content), self.around(prompt)
        if text is None or around is None:
            return None
        before, after = around
        return unpack([before, *self.tokenizer.encode(self.tokenizer.pieces(text)), after])


def _message(given: Mapping[str, str], form: Content) -> dict[str, Any]:
    # In vLLM's order: a template may write a message out whole.
    text = given["content"]
    content = text if form is Content.TEXT else [{"type": "text", "text": text}]
    return {"role": given["role"], "content": content}
