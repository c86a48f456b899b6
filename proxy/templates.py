"""A model's chat template: messages into the prompt's text, as ``transformers`` does it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvstore.errors import WireError

_REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""All that a template can raise on messages it does not like."""


class ChatTemplate:
    """A compiled template. It knows ``variables`` (special tokens) by their names."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        """Raises WireError for what is no template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise WireError(f"not a chat template: {type(error).__name__}") from None
        self._variables = dict(variables)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """The prompt's text, open for an answer; None where the template refuses ``messages``.

        The template is the model's, so its work and what it writes grow with what it is given.
        """
        try:
            return self._template.render(
                **self._variables,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
            )
        except _REFUSALS:
            return None


class _Generation(Extension):
    """``{% generation %}`` marks what a model said, for training. Here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as the base class has it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(wanted: str) -> str:
    return datetime.now().strftime(wanted)
