"""Our chat templates write what transformers' write, and what vLLM makes of messages for them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import _detect_content_format

from kvstore.errors import WireError
from kvstore.text_rules import TextRules
from proxy.plain import Plain
from proxy.rendering import Content, Rendering
from proxy.samples import SAMPLES
from proxy.templates import ChatTemplate
from tests.support.tokenizers_of import described

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "default": {"a": [1, "é<&>'\""]}}

TEMPLATES = {
    "chatml": """{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
You are.<|im_end|>
    {% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "llama": """{{- bos_token }}
{%- if not date is defined %}{%- set date = strftime_now("%d %b %Y") %}{%- endif %}
{%- if not tools is none %}tools{% endif -%}
{%- set ns = namespace(seen=0, text='') %}
{%- for message in messages %}
    {%- set ns.seen = ns.seen + 1 %}
    {{- '<|' + message['role'] + '|>\\n' + (message['content'] | trim) + date }}
{%- endfor %}
{{- ns.seen ~ messages | length }}{{ documents }}{{ undefined }}""",
    "strict": """{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate.') }}{% endif %}
{{ (first + message['content']).strip() if loop.first else message.content }}
{% if message.content[99999] is defined %}never{% endif %}
{% endfor %}""",
    "generation": """{% for message in messages %}{% set who = 'x' %}
{% if message.role == 'assistant' %}{% generation %}{% set who = 'y' %}{{ message.content }}
{{ who }}{% endgeneration %}{% elif message.content == '' %}{% continue %}{% else %}
{{ message | tojson }}{{ message | tojson(indent=2) }}{% endif %}{{ who }}
{% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}{{ default | tojson(ensure_ascii=true, sort_keys=true) }}""",
    "macro": """{% macro shown(content) %}{% if content is string %}{{ content }}{% else %}
{% for part in content %}{{ part.text | trim }}{% endfor %}{% endif %}{% endmacro %}
{% for message in messages %}{{ shown(message.content) | upper }}{{ message.keys() | list }}
{% endfor %}{{ messages.append(1) }}""",
    "either": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% if messages[0]['content'] is string %}{% set first = messages[0]['content'] + '\n\n' %}
{% else %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{% for message in rest %}{{ '<t>' + message['role'] + '\n' + (first if loop.first else '') }}
{% if message['content'] is string %}{{ message['content'] | trim }}
{% elif message['content'] is iterable %}{% for item in message['content'] %}
{% if item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}</t>
{% endfor %}""",
    "parts only": """{% for message in messages %}{{ message.role }}
{% for part in message.content %}{{ part['text'] }}{% if not loop.last %}
{% endif %}{% endfor %}{% endfor %}""",
    "trimmed parts": """{% for message in messages %}{% if message.content is string %}
{{ message.content }}{% else %}{% for part in message.content %}{{ part['text'] | trim }}
{% endfor %}{% endif %}|{% endfor %}""",
    "raises": "{{ messages[0].content + 1 }}",
    "sandboxed": "{{ ''.__class__.__mro__ }}",
}

MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        }
    ),
    min_size=1,
    max_size=5,
)


def theirs(source: str, messages: list[dict[str, Any]]) -> str | None:
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=source,
            add_generation_prompt=True,
            **VARIABLES,
        )
    except Exception:  # noqa: BLE001 (as vLLM has it: whatever a template raises is a refusal)
        return None
    return str(texts[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_samples(name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], VARIABLES)
    for sample in SAMPLES["chat"]:
        assert template.render(sample["messages"]) == theirs(TEMPLATES[name], sample["messages"])


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(messages=MESSAGES)
def test_any_messages(name: str, messages: list[dict[str, Any]]) -> None:
    template = ChatTemplate(TEMPLATES[name], VARIABLES)
    assert template.render(messages) == theirs(TEMPLATES[name], messages)


def as_vllm_does(source: str, messages: list[dict[str, Any]]) -> str | None:
    """Of the prompt that vLLM makes of ``messages``, the text."""
    content_format = _detect_content_format(source, default="string")
    model = SimpleNamespace(enable_prompt_embeds=False, multimodal_config=None)
    conversation, _, _ = parse_chat_messages(messages, model, content_format)
    return theirs(source, conversation)


def chosen(name: str) -> tuple[Rendering, Content] | None:
    """How the proxy would render by this template after comparing the samples, if at all."""
    rules = TextRules(msgspec.Raw(described("gpt-2")), VARIABLES, TEMPLATES[name])
    rendering = Rendering(rules)
    for content in Content:
        texts = [
            (rendering.text(Plain(messages=s["messages"]), content), s) for s in SAMPLES["chat"]
        ]
        if all(text == as_vllm_does(TEMPLATES[name], s["messages"]) for text, s in texts if text):
            return (rendering, content) if any(text for text, _ in texts) else None
    return None


def test_the_contents_form_is_found() -> None:
    found = {name: choice[1] for name in TEMPLATES if (choice := chosen(name)) is not None}
    assert {name for name, content in found.items() if content is Content.PARTS} == {
        "either",
        "parts only",
        "trimmed parts",
    }
    assert set(TEMPLATES) - set(found) == {"macro", "raises", "sandboxed"}


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"macro", "raises", "sandboxed"}))
@settings(max_examples=40, deadline=None)
@given(messages=MESSAGES)
def test_what_was_chosen_renders_as_vllm_does(name: str, messages: list[dict[str, Any]]) -> None:
    choice = chosen_once(name)
    assert choice is not None
    rendering, content = choice
    text = rendering.text(Plain(messages=messages), content)
    assert text is None or text == as_vllm_does(TEMPLATES[name], messages)


chosen_once = cache(chosen)


def test_templates_do_render_and_do_refuse() -> None:
    written = {
        name: [ChatTemplate(source, VARIABLES).render(s["messages"]) for s in SAMPLES["chat"]]
        for name, source in TEMPLATES.items()
    }
    none = {name for name, texts in written.items() if set(texts) == {None}}
    assert none == {"macro", "raises", "sandboxed"}
    assert None in written["strict"]


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% unknown %}", "{% generation %}"])
def test_what_is_no_template_is_refused(source: str) -> None:
    with pytest.raises(WireError):
        ChatTemplate(source, {})
